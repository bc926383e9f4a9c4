// Causal attention of a few tokens over the cache, in f32 throughout. ggml's flash attention sums f16 values
// in f16 when it has fewer tokens than a tile, which makes single tokens differ from batches by 1e-6 to 1e-5
// (NMSE).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu_ops.h"

namespace sardine {

// q and out: [n_tokens][n_heads][dim]. Cached row p of head g starts at k + p * row_bytes + g * dim elements.
struct AttentionArgs {
    const float* q;
    float* out;
    const uint8_t* k;
    const uint8_t* v;
    KvType type;
    size_t row_bytes;
    const int32_t* positions;  // [n_tokens]; a token sees the rows 0 to its position
    int64_t n_tokens, n_heads, n_heads_kv, dim;
    float scale;
};

// Working floats of one thread.
inline int64_t attention_scratch(int64_t n_heads, int64_t n_heads_kv) {
    return n_heads / n_heads_kv * kAttentionBlock;
}

// Thread ith of nth does its share of the (token, head) pairs.
void attention(const AttentionArgs& args, const CpuOps& ops, int ith, int nth, float* scratch);

}  // namespace sardine
