// The kernels on the emulated grid, beside ggml's CPU backend: for tests, which so run all but the launches
// themselves.
#pragma once

#include <memory>

#include "device.h"

namespace sardine::device {

// Calls of all emulated devices so far.
struct EmulatedCounts {
    int64_t launches = 0, orders = 0, waits = 0, paces = 0;
};
EmulatedCounts emulated_counts();
// The launch after so many others fails: at once, or `late`, as an asynchronous error that the next
// synchronize() or keep_pace() tells of.
void fail_emulated_launch(int64_t after, bool late);

// Reports a launch that ggml's work was not ordered before, or the reverse, as an error.
std::unique_ptr<Device> open_emulated_device(const Limits& limits);

}  // namespace sardine::device
