#include "offload/gpu.h"

#include <dlfcn.h>
#include <ggml-alloc.h>
#include <ggml-cpu.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "emulated_device.h"
#include "offload/emulated_cuda.h"
#include "sardine/error.h"

namespace sardine {
namespace {

std::atomic<uint64_t> emulated_memory{0};
std::atomic<bool> emulated_flash{true}, emulated_rounding{false};

const char* const kInstall =
    "install llama-cpp-python with CMAKE_ARGS=-DGGML_CUDA=on and then this package with "
    "CMAKE_ARGS=-DSARDINE_CUDA=ON (docs/gpu.md), or use n_gpu_layers=0";

// The library of the kernels lies beside the extension that this code is part of.
std::string kernels_path() {
    Dl_info info{};
    std::string path = "libsardine_cuda.so";
    if (::dladdr(reinterpret_cast<const void*>(&kernels_path), &info) != 0 && info.dli_fname)
        path = std::string(info.dli_fname).substr(0, std::string(info.dli_fname).rfind('/') + 1) + path;
    return path;
}

bool is_gpu(ggml_backend_dev_t dev) {
    return ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_GPU;
}

bool ggml_has_cuda() {
    return ggml_backend_reg_by_name("CUDA") != nullptr;
}

// Never closed: CUDA keeps pointers into it. Throws DeviceError.
void* load_kernels(const std::string& path) {
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library)
        throw DeviceError("cannot load the CUDA kernels: " + std::string(::dlerror()) +
                          ": build sardine_gguf again with the CUDA that is installed (docs/gpu.md)");
    const auto version = reinterpret_cast<device::DeviceVersion>(::dlsym(library, "sardine_device_version"));
    if (!version || !::dlsym(library, "sardine_open_device"))
        throw DeviceError(path + " is not this package's library of CUDA kernels: reinstall sardine_gguf");
    if (version() != device::kDeviceVersion)
        throw DeviceError(path + " has version " + std::to_string(version()) +
                          " of the kernels, and version " + std::to_string(device::kDeviceVersion) +
                          " is needed: reinstall sardine_gguf with CMAKE_ARGS=-DSARDINE_CUDA=ON");
    return library;
}

}  // namespace

bool flash_has_heads(int64_t dim) {
    constexpr int64_t kHeads[] = {40, 64, 72, 80, 96, 112, 128, 256};
    return std::find(std::begin(kHeads), std::end(kHeads), dim) != std::end(kHeads);
}

void emulate_gpu(uint64_t free_bytes, bool flash, bool rounds) {
    emulated_memory = free_bytes;
    emulated_flash = flash;
    emulated_rounding = rounds;
}

std::unique_ptr<device::Device> open_kernels(const std::string& path, ggml_backend* backend) {
    if (::access(path.c_str(), R_OK) != 0)
        throw DeviceError("this build of sardine_gguf has no CUDA kernels (" + path +
                          " is missing): " + kInstall);
    void* library = load_kernels(path);
    const auto open = reinterpret_cast<device::OpenDevice>(::dlsym(library, "sardine_open_device"));
    char error[600] = {};
    std::unique_ptr<device::Device> kernels(open(backend, error, sizeof error));
    if (!kernels) throw DeviceError("the GPU cannot be used: " + std::string(error));
    return kernels;
}

std::unique_ptr<Gpu> Gpu::open() {
    std::unique_ptr<Gpu> gpu(new Gpu);
    gpu->process_ = ::getpid();
    if (emulated_memory > 0) {
        gpu->emulated_ = true;
        gpu->name_ = "emulated";
        gpu->backend_.reset(ggml_backend_cpu_init());
        if (!gpu->backend_) throw InsufficientMemory("no memory for the emulated GPU");
        gpu->kernels_ = device::open_emulated_device({.n_multiprocessors = 2, .threads = 256});
        return gpu;
    }
    if (!ggml_has_cuda())
        throw DeviceError(
            std::string("llama-cpp-python was built without CUDA, so there is no GPU to use: ") + kInstall);
    ggml_backend_dev_t dev = nullptr;
    for (size_t i = 0; !dev && i < ggml_backend_dev_count(); ++i)
        if (is_gpu(ggml_backend_dev_get(i))) dev = ggml_backend_dev_get(i);
    if (!dev)
        throw DeviceError(
            "ggml finds no GPU: check that nvidia-smi lists one and that its driver is at least as new as "
            "the "
            "CUDA that llama-cpp-python was built with, or use n_gpu_layers=0");
    gpu->name_ = ggml_backend_dev_description(dev);
    gpu->backend_.reset(ggml_backend_dev_init(dev, nullptr));
    if (!gpu->backend_) throw DeviceError("ggml cannot use the GPU " + gpu->name_ + ": is its memory full?");
    gpu->kernels_ = open_kernels(kernels_path(), gpu->backend_.get());
    return gpu;
}

// What a forked child has of CUDA's is not its own, and freeing it would end the process.
Gpu::~Gpu() {
    if (!is_forked()) return;
    static_cast<void>(kernels_.release());
    static_cast<void>(backend_.release());
}

bool Gpu::is_forked() const {
    return ::getpid() != process_;
}

void Gpu::check_process() const {
    if (is_forked())
        throw DeviceError(name_ +
                          ": CUDA does not work in a process that was forked after the GPU was opened: "
                          "open the model in the child, or start it with 'spawn'");
}

double Gpu::free_memory() const {
    if (emulated_) return static_cast<double>(emulated_memory);
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_device(), &free, &total);
    return static_cast<double>(free);
}

bool Gpu::supports(const ggml_tensor* op) const {
    if (emulated_ && op->op == GGML_OP_FLASH_ATTN_EXT &&
        !(emulated_flash && flash_has_heads(op->src[0]->ne[0])))
        return false;
    return ggml_backend_supports_op(backend_.get(), op);
}

void Gpu::compute(ggml_cgraph* graph) const {
    check(emulated_ ? compute_as_cuda(backend_.get(), graph, emulated_rounding)
                    : ggml_backend_graph_compute_async(backend_.get(), graph));
}

ggml_backend_buffer_ptr Gpu::allocate(ggml_context* ctx, const char* what) const {
    double bytes = 0;
    for (ggml_tensor* t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t))
        bytes += static_cast<double>(ggml_nbytes(t));
    ggml_backend_buffer_ptr buffer;
    if (!emulated_ || bytes <= free_memory())  // a real one knows by itself
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx, buffer_type()));
    if (!buffer)
        throw InsufficientMemory(std::string("the GPU has no memory for ") + what +
                                 ": use fewer n_gpu_layers or a smaller n_ctx");
    return buffer;
}

void Gpu::check(const char* error) const {
    if (error) throw DeviceError(name_ + ": " + error);
}

void Gpu::check(ggml_status status) const {
    if (status != GGML_STATUS_SUCCESS)
        throw DeviceError(name_ + ": ggml failed with status " + std::to_string(status));
}

GpuFacts find_gpus() {
    GpuFacts f{.devices = {},
               .ggml_has_cuda = ggml_has_cuda(),
               .has_kernels = ::access(kernels_path().c_str(), R_OK) == 0,
               .kernels_path = kernels_path(),
               .kernels_error = {}};
    if (f.has_kernels) {
        try {
            load_kernels(f.kernels_path);
        } catch (const DeviceError& e) {
            f.kernels_error = e.what();
        }
    }
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        if (!is_gpu(dev)) continue;
        GpuFacts::Device d{.name = ggml_backend_dev_description(dev)};
        ggml_backend_dev_memory(dev, &d.free, &d.total);
        f.devices.push_back(std::move(d));
    }
    return f;
}

}  // namespace sardine
