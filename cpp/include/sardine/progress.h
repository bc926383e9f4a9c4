// How something long talks to its caller.
#pragma once

#include <functional>

namespace sardine {

// Asked now and then while something takes long, on the thread of the caller; what it throws ends the work.
using StopPoint = std::function<void()>;

// The same, told how much is done, 0 to 1. May be null.
using Progress = std::function<void(double)>;

}  // namespace sardine
