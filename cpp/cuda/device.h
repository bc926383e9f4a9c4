// A device that runs the kernels beside one of ggml's backends: CUDA's (cuda_device.cu, in a library of its
// own) or the emulated one of the tests.
//
// Kernels run on a stream of their own. wait_for_backend() orders what is launched next after all that ggml
// was given; backend_waits() orders what ggml is given next after all launches. Nothing waits on the host.
//
// Calls return null, or a text that says what failed; it lives until the next call. No exception crosses the
// boundary of the library.
#pragma once

#include <ggml-backend.h>

#include "launch.h"
#include "views.h"

namespace sardine::device {

// A layer of experts has at most four steps.
constexpr int kStepsAhead = 4;

class Device {
 public:
    virtual ~Device() = default;
    virtual const Limits& limits() const = 0;

    virtual const char* wait_for_backend() = 0;
    virtual const char* backend_waits() = 0;
    // Waits until all launches have ended, and tells of one that failed.
    virtual const char* synchronize() = 0;
    // Between the steps of a batch: waits until no more than kStepsAhead of them are queued, so that a stop
    // takes effect soon. Never in decoding.
    virtual const char* keep_pace() = 0;

    virtual const char* route(const RouteArgs& a) = 0;
    virtual const char* group(const GroupArgs& a) = 0;
    virtual const char* delta_rows(const RowsArgs& a, const RowsShape& shape) = 0;
    virtual const char* delta_tiles(const TilesArgs& a) = 0;

    // What is launched here, and what ggml is given between wait_for_backend() and backend_waits(), from the
    // first call to the second becomes one graph, which replay() runs. Not every device can.
    virtual const char* begin_capture() = 0;
    virtual const char* end_capture() = 0;
    // Instead of end_capture() if something failed since begin_capture() succeeded: nothing is recorded.
    virtual void abandon_capture() = 0;
    virtual const char* replay() = 0;
};

// Rises with every change of this file, launch.h or views.h.
constexpr uint32_t kDeviceVersion = 3;

// What the library exports as sardine_device_version and sardine_open_device. Null on failure, with the
// reason in `error`. The backend must outlive the device.
using DeviceVersion = uint32_t (*)();
using OpenDevice = Device* (*)(ggml_backend* backend, char* error, size_t size);

}  // namespace sardine::device
