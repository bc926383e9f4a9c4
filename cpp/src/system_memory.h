// How much memory an allocation may take.
#pragma once

#include <cstdint>

namespace sardine {

// Bytes that can be allocated without swapping: MemAvailable, cut to the cgroup's and the process's limits.
// Pages of files count as free, but for `kept` bytes of them, which are to stay in memory.
uint64_t available_memory(uint64_t kept = 0);

// For tests: what available_memory() gives, less `kept`, from now on; 0 asks the system again.
void pretend_available_memory(uint64_t bytes);

}  // namespace sardine
