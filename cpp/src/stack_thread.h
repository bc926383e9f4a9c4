// Work that recurses deeply, on a thread whose stack is large enough.
#pragma once

#include <cstddef>
#include <functional>

#include "sardine/progress.h"

namespace sardine {

// Bytes of stack that the calling thread has left.
size_t stack_left();

// Runs `work` on a thread with `stack_bytes` of stack, of which only what is used takes memory, and rethrows
// what it throws. When `stop` throws, the work is left to end by itself: it must own all that it uses.
// Throws InsufficientMemory if there is no such thread to be had.
void run_with_stack(size_t stack_bytes, std::function<void()> work, const StopPoint& stop);

// Whether work that was left still runs: libraries must not be torn down under it.
bool work_is_left();
// Waits for it.
void wait_for_left_work();

}  // namespace sardine
