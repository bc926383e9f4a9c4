#include "system_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
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

std::atomic<uint64_t> pretended{0};

// The number after a word in a file of "word number" lines.
uint64_t read_entry(const char* path, const char* word, uint64_t fallback) {
    std::ifstream in(path);
    std::string key;
    uint64_t value;
    while (in >> key >> value) {
        if (key == word) return value;
        in.ignore(256, '\n');
    }
    return fallback;
}

uint64_t less(uint64_t a, uint64_t b) {
    return a > b ? a - b : 0;
}

}  // namespace

void pretend_available_memory(uint64_t bytes) {
    pretended = bytes;
}

uint64_t available_memory(uint64_t kept) {
    if (const uint64_t bytes = pretended) return less(bytes, kept);
    const uint64_t kib = read_entry("/proc/meminfo", "MemAvailable:", kUnlimited);
    uint64_t free = kib < kUnlimited / 1024 ? kib * 1024 : kUnlimited;
    const uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    const uint64_t used = read_number("/sys/fs/cgroup/memory.current");
    if (limit != kUnlimited && used != kUnlimited) {
        // Cached pages of files are counted as used, and given up when memory is wanted.
        const char* stat = "/sys/fs/cgroup/memory.stat";
        const uint64_t cached = read_entry(stat, "inactive_file", 0) + read_entry(stat, "active_file", 0);
        free = std::min(free, less(limit, less(used, cached)));
    }
    if (free != kUnlimited) free = less(free, kept);
    rlimit as{};
    if (::getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY) {
        // The first number of statm is the address space in use, in pages.
        uint64_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const uint64_t size = pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
        free = std::min(free, less(as.rlim_cur, size));
    }
    return free;
}

}  // namespace sardine
