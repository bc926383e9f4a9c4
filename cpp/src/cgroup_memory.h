// Memory that the control groups (of either version) leave to this process.
#pragma once

#include <cstdint>
#include <string>

namespace sardine {

// The least of limit - used + cached over the process's group and those above it; the largest number if none
// has a limit. Cached pages of files count as used, and are given up when memory is wanted.
//   mount: where the groups are mounted, /sys/fs/cgroup
//   groups: the file that names the process's, /proc/self/cgroup
uint64_t cgroup_memory(const std::string& mount, const std::string& groups);

}  // namespace sardine
