#include "system_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace sardine {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

uint64_t read_number(const char* path) {
    std::ifstream in(path);
    std::string word;
    if (!(in >> word) || word == "max") return kUnlimited;
    try {
        return std::stoull(word);
    } catch (const std::exception&) {
        return kUnlimited;
    }
}

uint64_t mem_available() {
    std::ifstream in("/proc/meminfo");
    std::string key;
    uint64_t kib;
    while (in >> key >> kib) {
        if (key == "MemAvailable:") return kib * 1024;
        in.ignore(256, '\n');
    }
    return kUnlimited;
}

}  // namespace

uint64_t available_memory() {
    uint64_t free = mem_available();
    const uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    const uint64_t used = read_number("/sys/fs/cgroup/memory.current");
    if (limit != kUnlimited && used != kUnlimited) free = std::min(free, limit > used ? limit - used : 0);
    rlimit as{};
    if (::getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY) {
        // The first number of statm is the address space in use, in pages.
        uint64_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const uint64_t size = pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
        free = std::min(free, as.rlim_cur > size ? as.rlim_cur - size : 0);
    }
    return free;
}

}  // namespace sardine
