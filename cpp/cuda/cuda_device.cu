// The kernels on a GPU, ordered against ggml-cuda by events.
#include <cuda_runtime.h>
#include <ggml-backend.h>
#include <ggml-cuda.h>

#include <cstdio>
#include <cstring>
#include <memory>

#include "launches.h"

namespace sardine::device {
namespace {

// What ggml's opaque event is made of (ggml-backend-impl.h, which is not installed). Checked before it is
// used.
struct GgmlEvent {
    ggml_backend_dev_t device;
    void* context;  // ggml-cuda's cudaEvent_t
};

class CudaDevice : public Launches<CudaDevice> {
 public:
    explicit CudaDevice(ggml_backend_t backend) : backend_(backend) {}
    ~CudaDevice() override {
        if (graph_) cudaGraphExecDestroy(graph_);
        if (stream_) {
            cudaStreamSynchronize(stream_);
            cudaStreamDestroy(stream_);
        }
        for (cudaEvent_t e : steps_)
            if (e) cudaEventDestroy(e);
        for (ggml_backend_event_t e : {theirs_, ours_})
            if (e) ggml_backend_event_free(e);
    }

    // Null, or why the device is of no use.
    const char* open() {
        if (!ggml_backend_is_cuda(backend_)) return fail("the backend is not ggml-cuda's");
        ggml_backend_dev_t dev = ggml_backend_get_device(backend_);
        theirs_ = ggml_backend_event_new(dev);
        ours_ = ggml_backend_event_new(dev);
        events_ = is_cuda_event(theirs_, dev) && is_cuda_event(ours_, dev);
        int id = 0;
        if (const char* e = checked(device_number(dev, id), "cudaGetDevice")) return e;
        cudaDeviceProp p{};
        if (const char* e = checked(cudaGetDeviceProperties(&p, id), "cudaGetDeviceProperties")) return e;
        if (p.major * 10 + p.minor < 75) {
            std::snprintf(text_, sizeof text_, "%s has compute capability %d.%d, and at least 7.5 is needed",
                          p.name, p.major, p.minor);
            return text_;
        }
        device_ = id;
        if (const char* e = checked(cudaSetDevice(id), "cudaSetDevice")) return e;
        limits_ = {.n_multiprocessors = p.multiProcessorCount,
                   .threads = p.maxThreadsPerMultiProcessor,
                   .shared_block = p.sharedMemPerBlockOptin,
                   .shared_all = p.sharedMemPerMultiprocessor};
        if (const char* e =
                checked(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a new stream"))
            return e;
        for (cudaEvent_t& e : steps_)
            if (const char* text =
                    checked(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "a new event"))
                return text;
        return self_check();
    }

    const Limits& limits() const override { return limits_; }

    // Without events of ggml's that we understand the host waits instead, which is as right and slower.
    const char* wait_for_backend() override {
        if (!events_) {
            ggml_backend_synchronize(backend_);
            return nullptr;
        }
        ggml_backend_event_record(theirs_, backend_);
        return checked(cudaStreamWaitEvent(stream_, event(theirs_), 0), "cudaStreamWaitEvent");
    }
    const char* backend_waits() override {
        if (!events_) return synchronize();
        if (const char* e = checked(cudaEventRecord(event(ours_), stream_), "cudaEventRecord")) return e;
        ggml_backend_event_wait(backend_, ours_);
        return nullptr;
    }
    const char* synchronize() override { return checked(cudaStreamSynchronize(stream_), "the kernels"); }

    // The event of kStepsAhead steps ago takes the place of this step's; one that was never recorded is over.
    const char* keep_pace() override {
        cudaEvent_t e = steps_[next_step_];
        next_step_ = (next_step_ + 1) % kStepsAhead;
        if (const char* text = checked(cudaEventSynchronize(e), "the kernels")) return text;
        return checked(cudaEventRecord(e, stream_), "cudaEventRecord");
    }

    // ggml-cuda's stream joins the capture by waiting for an event of ours, and leaves it by ours waiting for
    // one of its.
    const char* begin_capture() override {
        if (!events_)
            return fail("SARDINE_CUDA_GRAPH=1 needs events of ggml-cuda's, and this build of it gives none");
        if (const char* e = checked(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed),
                                    "cudaStreamBeginCapture"))
            return e;
        const char* e = backend_waits();
        if (e) abandon_capture();
        return e;
    }
    const char* end_capture() override {
        if (const char* e = wait_for_backend()) {
            abandon_capture();
            return e;
        }
        cudaGraph_t graph = nullptr;
        if (const char* e = checked(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture")) return e;
        if (graph_) cudaGraphExecDestroy(graph_);
        graph_ = nullptr;
        const char* e = checked(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
        cudaGraphDestroy(graph);
        return e;
    }
    // Both streams leave the capture, whatever state it is in; the text of what failed stays.
    void abandon_capture() override {
        cudaGraph_t graph = nullptr;
        cudaStreamEndCapture(stream_, &graph);
        if (graph) cudaGraphDestroy(graph);
        cudaGetLastError();
    }
    const char* replay() override { return checked(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch"); }

    template <typename Args>
    const char* run(void (*kernel)(Args), const GridShape& s, const Args& args) {
        if (const char* e = checked(cudaSetDevice(device_), "cudaSetDevice")) return e;
        // As much as there is, not as this launch takes: the limit is the process's, and another context may
        // launch the same kernel with more at this moment.
        if (s.shared > 48 * 1024)
            if (const char* e = checked(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                             static_cast<int>(limits_.shared_block)),
                                        "shared memory"))
                return e;
        kernel<<<dim3(s.x, s.y), dim3(s.threads), s.shared, stream_>>>(args);
        return checked(cudaGetLastError(), "a kernel's launch");
    }

 private:
    // ggml-cuda gives none if it was built with GGML_CUDA_NO_PEER_COPY.
    static bool is_cuda_event(ggml_backend_event_t e, ggml_backend_dev_t dev) {
        const auto* layout = reinterpret_cast<const GgmlEvent*>(e);
        return layout && layout->device == dev && layout->context;
    }

    static cudaEvent_t event(ggml_backend_event_t e) {
        return static_cast<cudaEvent_t>(reinterpret_cast<const GgmlEvent*>(e)->context);
    }

    // CUDA's number of ggml's device: both know its address on the bus.
    static cudaError_t device_number(ggml_backend_dev_t dev, int& id) {
        ggml_backend_dev_props props{};
        ggml_backend_dev_get_props(dev, &props);
        if (!props.device_id) return cudaGetDevice(&id);
        return cudaDeviceGetByPCIBusId(&id, props.device_id);
    }

    // A round trip of both events must end without an error.
    const char* self_check() {
        if (const char* e = wait_for_backend()) return e;
        if (const char* e = backend_waits()) return e;
        ggml_backend_synchronize(backend_);
        return synchronize();
    }

    const char* checked(cudaError_t status, const char* what) {
        if (status == cudaSuccess) return nullptr;
        std::snprintf(text_, sizeof text_, "CUDA: %s: %s (%s)", what, cudaGetErrorString(status),
                      cudaGetErrorName(status));
        cudaGetLastError();  // or the next check would see it again
        return text_;
    }
    const char* fail(const char* what) {
        std::snprintf(text_, sizeof text_, "%s", what);
        return text_;
    }

    ggml_backend_t backend_;
    ggml_backend_event_t theirs_ = nullptr, ours_ = nullptr;
    cudaStream_t stream_ = nullptr;
    cudaGraphExec_t graph_ = nullptr;
    int device_ = 0;
    cudaEvent_t steps_[kStepsAhead] = {};
    int next_step_ = 0;
    bool events_ = false;
    Limits limits_;
    char text_[512] = {};
};

}  // namespace
}  // namespace sardine::device

extern "C" __attribute__((visibility("default"))) uint32_t sardine_device_version() {
    return sardine::device::kDeviceVersion;
}

extern "C" __attribute__((visibility("default"))) sardine::device::Device* sardine_open_device(
    ggml_backend_t backend, char* error, size_t size) {
    using namespace sardine::device;
    auto device = std::make_unique<CudaDevice>(backend);
    if (const char* e = device->open()) {
        std::snprintf(error, size, "%s", e);
        return nullptr;
    }
    return device.release();
}
