// A GPU as one context uses it: ggml's backend for the base, our kernels beside it for the experts.
#pragma once

#include <ggml-cpp.h>

#include <memory>
#include <string>
#include <vector>

#include "device.h"

namespace sardine {

// Kept free for what ggml-cuda allocates by itself, and whose failure would end the process.
constexpr double kGpuWorkspace = 192.0 * 1024 * 1024;

class Gpu {
 public:
    // The first GPU of ggml's. Throws DeviceError, which says what to install, where there is none, ggml or
    // this package was built without CUDA, or the two do not fit.
    static std::unique_ptr<Gpu> open();
    ~Gpu();

    ggml_backend* backend() const { return backend_.get(); }
    ggml_backend_dev_t ggml_device() const { return ggml_backend_get_device(backend_.get()); }
    ggml_backend_buffer_type_t buffer_type() const {
        return ggml_backend_get_default_buffer_type(backend_.get());
    }
    device::Device& kernels() const { return *kernels_; }
    const std::string& name() const { return name_; }
    double free_memory() const;
    double workspace() const { return emulated_ ? 0.0 : kGpuWorkspace; }
    bool supports(const ggml_tensor* op) const;
    // Queues a graph. Throws DeviceError.
    void compute(ggml_cgraph* graph) const;

    // Device memory in one piece for all tensors of ctx. Throws InsufficientMemory, which names `what`.
    ggml_backend_buffer_ptr allocate(ggml_context* ctx, const char* what) const;
    // Throws DeviceError if a kernel or ggml says that it failed.
    void check(const char* error) const;
    void check(ggml_status status) const;
    // Throws DeviceError in a process forked from the one that opened the GPU, where CUDA does not work.
    void check_process() const;
    bool is_forked() const;

 private:
    Gpu() = default;
    ggml_backend_ptr backend_;
    std::unique_ptr<device::Device> kernels_;
    std::string name_;
    bool emulated_ = false;
    int64_t process_ = 0;  // that opened it
};

// What there is, for the doctor; no GPU is opened.
struct GpuFacts {
    struct Device {
        std::string name;
        size_t free = 0, total = 0;
    };
    std::vector<Device> devices;  // those that ggml has
    bool ggml_has_cuda = false;
    bool has_kernels = false;   // whether our library is beside the extension
    std::string kernels_path;   // where it is, or is looked for
    std::string kernels_error;  // why it cannot be loaded; empty if it can or is missing
};
GpuFacts find_gpus();

// Loads a library of kernels and opens its device. Throws DeviceError, which says what to do.
std::unique_ptr<device::Device> open_kernels(const std::string& path, ggml_backend* backend);

// Whether ggml-cuda's flash attention takes heads of this size, whatever the others are like.
bool flash_has_heads(int64_t dim);

// For tests: from now on the GPU is emulated by the CPU, and has so much free memory; 0 ends it. `flash`:
// whether it has flash attention, which ggml-cuda has for some sizes of heads only. `rounds`: see
// emulated_cuda.h.
void emulate_gpu(uint64_t free_bytes, bool flash, bool rounds);

}  // namespace sardine
