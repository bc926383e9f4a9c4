// How much memory an allocation may take.
#pragma once

#include <cstdint>

namespace sardine {

// Bytes that can be allocated without swapping: MemAvailable, cut to the cgroup's and the process's limits.
uint64_t available_memory();

}  // namespace sardine
