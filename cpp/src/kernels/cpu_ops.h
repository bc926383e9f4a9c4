// The inner loops of the sparse deltas and of attention, one table per instruction set, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "delta_pack.h"

namespace sardine {

// Tokens per tile of the prefill kernel; activations are laid out [n_cols][kTokenTile].
constexpr int kTokenTile = 32;

// Positions that attention weighs at a time.
constexpr int64_t kAttentionBlock = 64;

enum class KvType { f16, f32, q8_0 };

struct CpuOps {
    const char* name;

    // out[i] (+)= weight * dequantize(val)[begin + i] for i in [0, n); `accumulate` chooses += over =.
    // For q8_0 begin is a multiple of 32, and out has room for n rounded up to 32.
    void (*add_values)(ValueType type, const uint8_t* val, int64_t begin, int64_t n, float weight,
                       bool accumulate, float* out);

    // y[r] += sum over p in [row_ptr[r], row_ptr[r + 1]) of v[p - begin] * x[col[p]], for r in [0, n_rows).
    void (*rows_dot)(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v,
                     int64_t begin, const float* x, float* y);

    // The same for a tile of tokens: acc[r][t] = sum of v[p - begin] * xt[col[p]][t].
    void (*rows_tile)(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v,
                      int64_t begin, const float* xt, float* acc);

    // scores[h][j] = q[h] . row j, for n_heads rows of q [n_heads, dim] and n_pos <= kAttentionBlock cached
    // rows row_bytes apart; scores is [n_heads][kAttentionBlock].
    void (*attention_scores)(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                             const float* q, int64_t n_heads, float* scores);

    // weights[j] = exp(weights[j] - top), of which none is above 0 before exp; returns their sum.
    float (*attention_exp)(float* weights, int64_t n, float top);

    // out[h] += sum over j of weights[h][j] * row j; out is [n_heads, dim].
    void (*attention_weigh)(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                            const float* weights, int64_t n_heads, float* out);
};

// The best table this processor runs, or the one that SARDINE_CPU names (portable, avx2, avx512).
// Throws InvalidArgument if that is unknown or not runnable here. Decided once per process.
const CpuOps& cpu_ops();

// By name; null if unknown or not runnable here.
const CpuOps* find_cpu_ops(const char* name);

extern const CpuOps kCpuOpsPortable;
#ifdef SARDINE_X86
extern const CpuOps kCpuOpsAvx2;
extern const CpuOps kCpuOpsAvx512;
#endif

}  // namespace sardine
