// The part of a context that is on a GPU: keys and values of the last layers, programs and their memory.
#pragma once

#include <ggml-cpp.h>

#include <memory>
#include <vector>

#include "offload/device_program.h"
#include "sardine/steering.h"

namespace sardine {

// Of one evaluation; the memory is the engine's, until the next one.
struct DeviceResult {
    const float* logits = nullptr;  // [n_rows, n_vocab]
    int64_t n_rows = 0;
    const float* routes = nullptr;         // [layers, n_tokens, 2k], or null
    const float* router_logits = nullptr;  // [layers, n_tokens, n_experts], or null
    int64_t n_layers = 0;
};

class DeviceEngine {
 public:
    // Throws DeviceError.
    DeviceEngine(const HParams& h, const DeviceWeights& w, DeltaMode mode, int64_t k, ggml_type kv_type);

    // Bytes of the device's memory for a context, keys and values included.
    double need(int64_t n_ctx, int64_t n_batch, ggml_type kv_type) const;
    double free_memory() const { return gpu_->free_memory(); }
    ggml_backend_buffer_type_t buffer_type() const { return gpu_->buffer_type(); }
    // Throws InsufficientMemory, with the bytes needed and free, before anything is allocated.
    void check_room(int64_t n_ctx, int64_t n_batch, ggml_type kv_type) const;
    // The cache's last layers are this device's. Throws InsufficientMemory, DeviceError.
    void allocate(const KvCache& cache, int64_t n_ctx, int64_t n_batch);

    // hidden: [n_tokens, n_embd] of the layers before. Throws DeviceError, InsufficientMemory, Cancelled.
    DeviceResult run(const float* hidden, int64_t n_tokens, int64_t n_past, bool all_logits,
                     const StopCheck& stop);

    // As the engine's own; the programs are built anew.
    void change(DeltaMode mode, int64_t k, const Steering& steering, bool keep_router_logits);

    ~DeviceEngine();
    // Throws DeviceError in a process forked from the one that made this.
    void check_process() const { gpu_->check_process(); }
    bool is_forked() const { return gpu_->is_forked(); }

    const std::string& name() const { return gpu_->name(); }
    double bytes() const;  // allocated, but for keys and values
    int64_t n_built() const { return n_built_; }
    int batch_nodes() const { return batch_.program ? batch_.program->n_nodes() : 0; }

 private:
    // As GraphSlot. `recorded` is captured as one graph of the device, if that is asked for.
    struct Slot {
        ggml_gallocr_ptr allocator;
        std::unique_ptr<DeviceProgram> program, recorded;
        int64_t n_runs = 0;
    };
    std::unique_ptr<DeviceProgram> build(Slot& slot, const DeviceShape& shape);
    DeviceProgram& program(Slot& slot, const DeviceShape& shape);
    void reserve();
    void apply();
    void write_inputs(const DeviceProgram& p, const float* hidden, int64_t n_past);
    std::unique_ptr<DeviceProgram> record(Slot& slot, const DeviceShape& shape);
    bool launch(Slot& slot, DeviceProgram& p, const StopCheck& stop);

    const HParams* h_;
    std::unique_ptr<Gpu> gpu_;  // before all that lies in its memory
    DeviceContext context_;
    Steering wanted_;      // of the last change()
    bool applied_ = true;  // whether memory and settings are those that it needs
    int64_t n_ctx_ = 0, n_batch_ = 0, n_built_ = 0, n_recorded_ = 0;
    bool capture_;
    ggml_context_ptr steering_ctx_;
    ggml_backend_buffer_ptr arena_, steering_;
    Slot single_, batch_;
    int32_t last_ = 0;
    std::vector<int32_t> positions_;
    std::vector<int64_t> rows_;
    std::vector<ggml_fp16_t> mask_;
    std::vector<float> scale_, logits_, routes_, router_logits_;
};

}  // namespace sardine
