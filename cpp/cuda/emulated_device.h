// The kernels on the emulated grid, beside ggml's CPU backend: for tests, which so run all but the launches
// themselves.
#pragma once

#include <memory>

#include "device.h"

namespace sardine::device {

// Reports a launch that ggml's work was not ordered before, or the reverse, as an error.
std::unique_ptr<Device> open_emulated_device(const Limits& limits);

}  // namespace sardine::device
