// Keys and values of every layer, one row a position.
#pragma once

#include <ggml-cpp.h>

#include <vector>

#include "hparams.h"

namespace sardine {

class KvCache {
 public:
    // Throws InsufficientMemory before it allocates, with the bytes needed and available.
    KvCache(const HParams& h, int64_t n_ctx, ggml_type type);

    // [head_dim * n_head_kv, n_ctx_padded]
    ggml_tensor* k(int64_t layer) const { return k_[layer]; }
    ggml_tensor* v(int64_t layer) const { return v_[layer]; }
    ggml_type type() const { return type_; }

    static double bytes(const HParams& h, int64_t n_ctx, ggml_type type);

 private:
    ggml_type type_;
    std::vector<ggml_tensor*> k_, v_;
    ggml_context_ptr ctx_;
    ggml_backend_buffer_ptr buffer_;
};

// Attention reads the cache in steps of this many positions, so that a decode graph lasts for as many tokens.
constexpr int64_t kKvStep = 256;
inline int64_t padded_positions(int64_t n) {
    return (n + kKvStep - 1) / kKvStep * kKvStep;
}

}  // namespace sardine
