// Keys and values of every layer, one row a position.
#pragma once

#include <ggml-cpp.h>

#include <vector>

#include "hparams.h"
#include "kernels/cpu_ops.h"

namespace sardine {

class KvCache {
 public:
    // The tensors alone: enough to build and measure a graph, not to run it.
    KvCache(const HParams& h, int64_t n_ctx, ggml_type type);
    // Layers from `first` on lie in memory of the device's type, the others in the host's. Throws
    // InsufficientMemory.
    void allocate(int64_t first = INT64_MAX, ggml_backend_buffer_type_t device = nullptr);

    // [head_dim * n_head_kv, n_ctx_padded]
    ggml_tensor* k(int64_t layer) const { return k_[layer]; }
    ggml_tensor* v(int64_t layer) const { return v_[layer]; }
    ggml_type type() const { return type_; }

    // Of n_layers layers, in double: a request may exceed any integer.
    static double bytes(const HParams& h, int64_t n_ctx, ggml_type type, int64_t n_layers);

    // Leaves the memory as it is for good: in a forked child a device's cannot be freed.
    void abandon() {
        for (ggml_backend_buffer_ptr& b : buffers_) static_cast<void>(b.release());
    }

 private:
    ggml_type type_;
    std::vector<ggml_tensor*> k_, v_;
    ggml_context_ptr ctx_;
    std::vector<ggml_backend_buffer_ptr> buffers_;
};

// f16, f32 or q8_0; the last needs heads of whole blocks. Throws InvalidArgument.
ggml_type parse_kv_type(const std::string& name, const HParams& h);
KvType kv_type_of(ggml_type type);

// Attention reads the cache in steps of this many positions, so that a decode graph lasts for as many tokens.
constexpr int64_t kKvStep = 256;
inline int64_t padded_positions(int64_t n) {
    return (n + kKvStep - 1) / kKvStep * kKvStep;
}

}  // namespace sardine
