#include "system_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>

#include "cgroup_memory.h"
#include "read_number.h"

namespace sardine {
namespace {

std::atomic<uint64_t> pretended{0};

}  // namespace

void pretend_available_memory(uint64_t bytes) {
    pretended = bytes;
}

uint64_t available_memory(uint64_t kept) {
    if (const uint64_t bytes = pretended) return saturating_minus(bytes, kept);
    const uint64_t kib = read_entry("/proc/meminfo", "MemAvailable:", kUnlimited);
    uint64_t free = kib < kUnlimited / 1024 ? kib * 1024 : kUnlimited;
    free = std::min(free, cgroup_memory("/sys/fs/cgroup", "/proc/self/cgroup"));
    if (free != kUnlimited) free = saturating_minus(free, kept);
    rlimit as{};
    if (::getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY) {
        // The first number of statm is the address space in use, in pages.
        uint64_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const uint64_t size = pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
        free = std::min(free, saturating_minus(as.rlim_cur, size));
    }
    return free;
}

}  // namespace sardine
