// Work without the GIL, on threads that the end of the process does not wait for.
#pragma once

#include <Python.h>

namespace sardine::python {

// Releases the GIL, in the place of py::gil_scoped_release. A daemon thread that wants the GIL back while
// Python is torn down would be unwound through destructors, which ends the process with an abort: once the
// process ends, it waits forever instead.
class NativeWork {
 public:
    NativeWork();
    ~NativeWork();
    NativeWork(const NativeWork&) = delete;

 private:
    PyThreadState* state_;
};

// Whether the process ends while this thread, a daemon, still runs: its work should stop.
bool thread_ends();

// For Python's atexit: stops the work of daemon threads and waits for it a moment. What goes on all the same,
// as work that was interrupted and left does, goes on until the process is gone: libraries are not torn down
// under it.
void end_threads();

}  // namespace sardine::python
