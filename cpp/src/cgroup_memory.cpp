#include "cgroup_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "read_number.h"

namespace sardine {
namespace {

// Names of a version's files, and of the cached pages in the last of them.
struct Version {
    const char *limit, *used, *inactive, *active;
};
constexpr Version kFirst{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                         "total_active_file"};
constexpr Version kSecond{"memory.max", "memory.current", "inactive_file", "active_file"};

uint64_t left_in(const std::string& folder, const Version& v) {
    const uint64_t limit = read_number(folder + "/" + v.limit);
    const uint64_t used = read_number(folder + "/" + v.used);
    if (limit == kUnlimited || used == kUnlimited) return kUnlimited;
    const std::string stat = folder + "/memory.stat";
    const uint64_t cached = read_entry(stat, v.inactive, 0) + read_entry(stat, v.active, 0);
    return saturating_minus(limit, saturating_minus(used, cached));
}

uint64_t left_above(const std::string& root, std::string path, const Version& v) {
    // A path with .. leads out of what this process sees; a path seen from elsewhere does not exist here.
    if (path.find("..") != path.npos) path.clear();
    uint64_t left = left_in(root, v);
    for (; path.size() > 1; path.resize(std::max<size_t>(path.rfind('/'), 0)))
        left = std::min(left, left_in(root + path, v));
    return left;
}

bool has_memory(const std::string& controllers) {
    std::istringstream in(controllers);
    for (std::string name; std::getline(in, name, ',');)
        if (name == "memory") return true;
    return false;
}

}  // namespace

uint64_t cgroup_memory(const std::string& mount, const std::string& groups) {
    uint64_t left = std::min(left_in(mount, kSecond), left_in(mount + "/memory", kFirst));
    std::ifstream in(groups);
    for (std::string line; std::getline(in, line);) {  // number:controllers:path
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == line.npos || second == line.npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string path = line.substr(second + 1);
        if (controllers.empty())
            left = std::min(left, left_above(mount, path, kSecond));
        else if (has_memory(controllers))
            left = std::min(left, left_above(mount + "/memory", path, kFirst));
    }
    return left;
}

}  // namespace sardine
