// The inner loops of the sparse deltas and of attention, one table per instruction set, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "delta_pack.h"

namespace sardine {

// Tokens per tile of the prefill kernel.
constexpr int kTokenTile = 32;

// Rows of a tile that are summed before they are added to y, whole lines of the cache: a token's rows lie in
// one piece there, but tokens' far apart, often in the same set of a cache.
constexpr int64_t kSpanRows = 128;

// Positions that attention weighs at a time.
constexpr int64_t kAttentionBlock = 64;

enum class KvType { f16, f32, q8_0 };

// Values and what they are multiplied with; of a token at most all experts' and a shared part's.
constexpr int64_t kMostParts = kMaxExperts + 1;
struct WeightedValues {
    ValueType type;
    const uint8_t* data;
    float weight;
};

struct TileOps {
    int64_t (*column_bytes)(int64_t n_tokens);  // of a tile of activations, in a layout of its own

    // The tile of n_rows <= kTokenTile rows of `width` floats; missing rows are zero. Any `width` columns of
    // a tile are packed as if they were one of their own.
    void (*pack)(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile);

    // acc[r][t] = sum over p in [row_ptr[r], row_ptr[r + 1]) of v[p - begin] * tile[col[p]][t], for r in
    // [0, n_rows) and t in [0, n_tokens); acc is [n_rows][kTokenTile]. v is changed.
    void (*rows)(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
                 const uint8_t* tile, int64_t n_tokens, float* acc);
};

struct CpuOps {
    const char* name;

    // out[i] (+)= weight * dequantize(val)[begin + i] for i in [0, n); `accumulate` chooses += over =.
    // For q8_0 begin is a multiple of 32, and out has room for n rounded up to 32.
    void (*add_values)(ValueType type, const uint8_t* val, int64_t begin, int64_t n, float weight,
                       bool accumulate, float* out);

    // y[r] += sum over p in [row_ptr[r], row_ptr[r + 1]) of mixed[p] * x[col[p]], for r in [0, n_rows), where
    // mixed is the sum of n_parts values by their weights. `scratch` has room for the rows' positions and two
    // blocks of Q8_0 more.
    void (*rows_dot)(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const WeightedValues* parts,
                     int64_t n_parts, const float* x, float* y, float* scratch);

    // Products of tiles of tokens, and a coarser kind for values that are rounded to 8 bits anyway: relative
    // to each summand it errs by 2^-7 (it may be the same).
    const TileOps* tile;
    const TileOps* coarse_tile;

    // y[t][i] += weight[t] * acc[i][t] for t in [0, n_tokens), i in [0, n_rows); acc is [n_rows][kTokenTile].
    void (*spread_tile)(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                        float* const* y);

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

// The best table this processor runs, or the one that SARDINE_CPU names (portable, avx2, avx512, avx512bf16,
// neon). Throws InvalidArgument if that is unknown or not runnable here. Decided once per process.
const CpuOps& cpu_ops();

// The plain loops, for sets that have none of their own.
int64_t plain_column_bytes(int64_t n_tokens);
void pack_tile_plain(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile);
void spread_tile_plain(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                       float* const* y);

// By name; null if unknown or not runnable here.
const CpuOps* find_cpu_ops(const char* name);

extern const CpuOps kCpuOpsPortable;
#ifdef SARDINE_X86
extern const CpuOps kCpuOpsAvx2;
extern const CpuOps kCpuOpsAvx512;
extern const CpuOps kCpuOpsAvx512Bf16;  // the same with a coarse tile of its own
extern const TileOps kTileAvx2, kTileAvx2Bf16, kTileAvx512Bf16;
void spread_tile_avx2(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                      float* const* y);
#endif
#ifdef SARDINE_NEON
extern const CpuOps kCpuOpsNeon;
extern const TileOps kTileNeon, kTileNeonBf16;
void spread_tile_neon(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                      float* const* y);
#endif

}  // namespace sardine
