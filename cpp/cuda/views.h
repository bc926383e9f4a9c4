// What the kernels are called with. Plain data whose pointers are the device's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "delta_pack.h"

#ifdef __CUDACC__
#define SARDINE_BOTH __host__ __device__
#else
#define SARDINE_BOTH
#endif

namespace sardine::device {

// Positions that a warp of the row kernel takes at a time. col and the values have room for a multiple of it,
// and start at 32-byte boundaries.
constexpr int64_t kChunk = 256;
SARDINE_BOTH inline int64_t padded(int64_t n_positions) {
    return (n_positions + kChunk - 1) / kChunk * kChunk;
}

// Values as delta_pack.h has them, but q8_0's blocks taken apart: the numbers, then all block scales.
struct Values {
    const uint8_t* data = nullptr;          // null: none
    const uint16_t* block_scale = nullptr;  // q8_0 alone, f16 [padded / 32]
    ValueType type = ValueType::f32;
};

struct Delta {
    int32_t n_rows = 0, n_cols = 0;
    int32_t n_blocks = 0, block_columns = 0;
    const int32_t* row_ptr = nullptr;  // [n_blocks * n_rows + 1]
    const uint16_t* col = nullptr;     // [padded]
    Values values;                     // of expert 0
    int64_t value_stride = 0;          // bytes between experts
    int64_t block_scale_stride = 0;    // elements between experts
    const float* scale = nullptr;      // [n_experts]
    Values shared;
    float shared_scale = 1.0f;
    // Rows of each warp of the row kernel's grid: equal in positions. [n_warps + 1]
    const int32_t* warp_rows = nullptr;
    int32_t row_lanes = 32;  // lanes that add up one row: 4, 8, 16 or 32
};

// Routes as routing.h has them, [n_tokens, 2k]; k is 0 where the shared part alone is added.
struct RouteArgs {
    const float* router = nullptr;  // [n_experts, n_cols]
    const float* x = nullptr;       // [n_tokens, n_cols], x_stride floats apart
    int64_t x_stride = 0;
    int32_t n_tokens = 0, n_cols = 0, n_experts = 0, k = 0;
    const float* bias = nullptr;    // [n_experts], added to the clamped logits; -infinity: never chosen
    const float* forced = nullptr;  // [2k]: the route of every token, whatever the logits
    const float* mean = nullptr;    // [n_experts], needed for gain
    float* routes = nullptr;        // out
    float* gain = nullptr;          // out, [n_tokens]: 1 + the weighted means; may be null
    float* logits = nullptr;        // out, [n_tokens, n_experts]: neither clamped nor biased; may be null
};

// y[t] = base[t] + shared @ x[t] + sum over the experts of a token of w * (Delta @ x[t]), for one matrix or
// for two of the same shape. With base null it is 0.
struct RowsArgs {
    Delta delta[2];
    float* y[2] = {};             // [n_tokens, n_rows], dense
    const float* base = nullptr;  // as y; for one matrix only
    int32_t n_matrices = 1;
    const float* x = nullptr;
    int64_t x_stride = 0;
    int32_t n_tokens = 0, k = 0;
    const float* routes = nullptr;
    int32_t staged = 0;  // whether a block's x is copied to shared memory
};

// Tokens of a batch in the order of their j-th expert, cut into tiles of tokens with the same one.
constexpr int32_t kTileTokens = 64;
struct Tile {
    int32_t expert, first, n;
};
SARDINE_BOTH inline int32_t max_tiles(int32_t n_tokens, int32_t n_experts) {
    return (n_tokens + kTileTokens - 1) / kTileTokens + n_experts;
}
struct GroupArgs {
    const float* routes = nullptr;
    int32_t n_tokens = 0, n_experts = 0, k = 0;
    int32_t* tokens = nullptr;  // out, [k, n_tokens]
    Tile* tiles = nullptr;      // out, [k, max_tiles]; those behind the last one have n = 0
};

// y[t] += w * ((shared + Delta) @ x[t]) for the j-th experts of all tokens, or the shared part alone where k
// is 0.
struct TilesArgs {
    Delta delta;
    float* y = nullptr;  // [n_tokens, n_rows], dense
    const float* x = nullptr;
    int64_t x_stride = 0;
    int32_t n_tokens = 0, n_tiles = 0, k = 0, j = 0;
    const float* routes = nullptr;
    const int32_t* tokens = nullptr;  // [n_tokens] of this j
    const Tile* tiles = nullptr;      // [n_tiles] of this j
    int32_t stage_columns = 0;        // of the launch: kFewColumns or kManyColumns
};

}  // namespace sardine::device
