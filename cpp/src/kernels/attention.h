// Causal attention of a few tokens over the cache, in f32 throughout. ggml's flash attention sums f16 values
// in f16 when it has fewer tokens than a tile, which makes single tokens differ from batches by 1e-6 to 1e-5
// (NMSE).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/q8_block.h"

namespace sardine {

// Bytes of n cached elements; of q8_0 n is a multiple of 32.
inline int64_t kv_bytes(KvType type, int64_t n) {
    switch (type) {
        case KvType::f16:
            return 2 * n;
        case KvType::f32:
            return 4 * n;
        case KvType::q8_0:
            return n / kQ8Block * static_cast<int64_t>(sizeof(Q8Block));
    }
    return 0;
}

// Asked between shares of work, by each thread with its number; true: return early, the result is not wanted.
struct StopCheck {
    bool (*ask)(void* data, int ith) = nullptr;
    void* data = nullptr;
    bool operator()(int ith) const { return ask && ask(data, ith); }
};

// q and out: [n_tokens][n_heads][dim]. Cached row p of head g starts at k + p * row_bytes + g * dim elements;
// of q8_0 dim is a multiple of 32.
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
    StopCheck stop = {};
};

// Working floats of one thread.
inline int64_t attention_scratch(int64_t n_heads, int64_t n_heads_kv) {
    return n_heads / n_heads_kv * kAttentionBlock;
}

// Thread ith of nth does its share of the (token, head) pairs.
void attention(const AttentionArgs& args, const CpuOps& ops, int ith, int nth, float* scratch);

// Thread ith of nth widens its share of n_rows q8_0 rows of row_bytes to out [n_rows][n].
void dequantize_rows(const uint8_t* rows, size_t row_bytes, int64_t n_rows, int64_t n, const CpuOps& ops,
                     int ith, int nth, float* out);

}  // namespace sardine
