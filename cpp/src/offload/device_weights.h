// The weights of a model's last layers on a GPU, which the contexts of the model share.
#pragma once

#include <ggml-cpp.h>

#include <memory>
#include <utility>
#include <vector>

#include "hparams.h"
#include "offload/gpu.h"
#include "sardine/progress.h"
#include "weights.h"

namespace sardine {

// n_gpu_layers counts as llama.cpp's: the output first, then layers from the last one backwards.
constexpr int64_t kAllLayers = -1, kAutoLayers = -2;

struct DeviceExperts {
    const float* router = nullptr;  // [n_expert, n_embd]
    const float* mean = nullptr;    // [n_expert]
    int32_t n_experts = 0;
    // A matrix without positions has n_rows 0. gate and up are split for one launch.
    device::Delta gate, up, down;
    device::RowsShape gate_up_shape, down_shape;
};

// As LayerWeights has them, the tensors in the GPU's memory.
struct DeviceLayer {
    LayerWeights base;                       // its experts are null
    std::unique_ptr<DeviceExperts> experts;  // null in a layer of the base alone
};

class DeviceWeights {
 public:
    // Copies the layers from `first` on and the output; first <= n_layer. Throws InsufficientMemory.
    DeviceWeights(const Weights& w, const HParams& h, int64_t first, const Gpu& gpu,
                  const Progress& progress = {});

    int64_t first() const { return first_; }
    const DeviceLayer& layer(int64_t il) const { return layers_[il - first_]; }
    ggml_tensor* output_norm() const { return output_norm_; }
    ggml_tensor* output() const { return output_; }
    ggml_tensor* rope_freqs() const { return rope_freqs_; }
    double bytes() const { return bytes_; }

    ~DeviceWeights();

 private:
    int64_t first_;
    int64_t process_;  // that made them
    std::vector<DeviceLayer> layers_;
    ggml_tensor *output_norm_ = nullptr, *output_ = nullptr, *rope_freqs_ = nullptr;
    double bytes_ = 0;
    std::vector<ggml_context_ptr> contexts_;
    std::vector<ggml_backend_buffer_ptr> buffers_;  // one for each part: a part that fails names itself
};

// The context that weights are to leave room for.
struct ContextPlan {
    int64_t n_ctx = 0, n_batch = 0;
    ggml_type kv_type = GGML_TYPE_F16;
};

// Bytes that a context takes besides its keys and values: activations, the largest batch's logits of one
// token, ggml-cuda's pool. An estimate from above for "auto"; a context measures before it allocates.
double device_scratch_estimate(const HParams& h, const ContextPlan& plan);
// Bytes of one layer's weights and deltas on the GPU, and of what is there whatever the number of layers.
double device_layer_bytes(const LayerWeights& l);
double device_output_bytes(const Weights& w);

// Throws InsufficientMemory, with the bytes needed and free, if the output and the last n - 1 layers alone
// take more than `free`.
void check_gpu_weights(const Weights& w, const HParams& h, int64_t n, double free);

// What to offload, 0 to n_layer + 1, so that weights, deltas, keys and values and scratch leave a margin of
// `free` bytes: the larger of kAutoMargin of them and kAutoMarginBytes (session.h). And the bytes of all
// that.
std::pair<int64_t, double> gpu_plan(const Weights& w, const HParams& h, const ContextPlan& plan, double free);

}  // namespace sardine
