// Tiles with NEON: of f32, and the coarse one of BF16 pairs, half the bytes. Only what every AArch64
// processor has.
#include <arm_neon.h>

#include "kernels/cpu_ops.h"

namespace sardine {
namespace {

static_assert(kTokenTile == 32, "eight vectors of f32 a column");

// Row i of v becomes column i.
void transpose4(uint32x4_t v[4]) {
    const uint32x4x2_t a = vtrnq_u32(v[0], v[1]), b = vtrnq_u32(v[2], v[3]);
    v[0] = vcombine_u32(vget_low_u32(a.val[0]), vget_low_u32(b.val[0]));
    v[1] = vcombine_u32(vget_low_u32(a.val[1]), vget_low_u32(b.val[1]));
    v[2] = vcombine_u32(vget_high_u32(a.val[0]), vget_high_u32(b.val[0]));
    v[3] = vcombine_u32(vget_high_u32(a.val[1]), vget_high_u32(b.val[1]));
}

// Columns [c, c + n), n <= 4, of four tokens from `first` on; missing ones are zero.
void load_columns(const float* const* rows, int64_t n_rows, int64_t first, int64_t c, int64_t n,
                  uint32x4_t v[4]) {
    for (int64_t i = 0; i < 4; ++i) {
        if (first + i >= n_rows) {
            v[i] = vdupq_n_u32(0);
        } else if (n == 4) {
            v[i] = vreinterpretq_u32_f32(vld1q_f32(rows[first + i] + c));
        } else {
            float part[4] = {};
            for (int64_t j = 0; j < n; ++j) part[j] = rows[first + i][c + j];
            v[i] = vreinterpretq_u32_f32(vld1q_f32(part));
        }
    }
    transpose4(v);
}

// [width][kTokenTile] floats
void pack(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    auto* out = reinterpret_cast<float*>(tile);
    for (int64_t c = 0; c < width; c += 4) {
        const int64_t n = width - c < 4 ? width - c : 4;
        for (int64_t t = 0; t < kTokenTile; t += 4) {
            uint32x4_t v[4];
            load_columns(rows, n_rows, t, c, n, v);
            for (int64_t i = 0; i < n; ++i)
                vst1q_f32(out + (c + i) * kTokenTile + t, vreinterpretq_f32_u32(v[i]));
        }
    }
}

void rows(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
          const uint8_t* tile, int64_t n_tokens, float* acc) {
    const auto* xt = reinterpret_cast<const float*>(tile);
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        // Eight independent sums hide the latency of the multiply-add.
        float32x4_t s[8];
        for (auto& a : s) a = vdupq_n_f32(0.0f);
        for (int64_t p = row_ptr[r]; p < row_ptr[r + 1]; ++p) {
            const float* x = xt + int64_t{col[p]} * kTokenTile;
            for (int h = 0; h < 8; ++h) s[h] = vfmaq_n_f32(s[h], vld1q_f32(x + 4 * h), v[p - begin]);
        }
        for (int h = 0; h < 8; ++h) vst1q_f32(acc + 4 * h, s[h]);
    }
}

// The nearest BF16, ties to even, in the upper half of each f32; NaN stays NaN.
uint32x4_t nearest_bf16(uint32x4_t x) {
    const uint32x4_t even = vandq_u32(vshrq_n_u32(x, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(x, vaddq_u32(even, vdupq_n_u32(0x7FFF)));
    const float32x4_t f = vreinterpretq_f32_u32(x);
    const uint32x4_t quiet = vorrq_u32(x, vdupq_n_u32(0x400000));
    return vandq_u32(vbslq_u32(vceqq_f32(f, f), up, quiet), vdupq_n_u32(0xFFFF0000));
}

// A column has a vector for each 8 tokens there are: lane i holds token i below and token 4 + i above.
int64_t vectors(int64_t n_tokens) {
    return (n_tokens + 7) / 8;
}

int64_t column_bytes_bf16(int64_t n_tokens) {
    return 16 * vectors(n_tokens);
}

void pack_bf16(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    const int64_t n_vectors = vectors(n_rows);
    for (int64_t c = 0; c < width; c += 4) {
        const int64_t n = width - c < 4 ? width - c : 4;
        for (int64_t h = 0; h < n_vectors; ++h) {
            uint32x4_t low[4], high[4];
            load_columns(rows, n_rows, 8 * h, c, n, low);
            load_columns(rows, n_rows, 8 * h + 4, c, n, high);
            for (int64_t i = 0; i < n; ++i) {
                const uint32x4_t two =
                    vorrq_u32(vshrq_n_u32(nearest_bf16(low[i]), 16), nearest_bf16(high[i]));
                vst1q_u8(tile + ((c + i) * n_vectors + h) * 16, vreinterpretq_u8_u32(two));
            }
        }
    }
}

// How many positions ahead a column's line is fetched; not measured on ARM.
constexpr int64_t kAhead = 24;

template <int kVectors>
void rows_bf16_of(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v, int64_t begin,
                  const uint8_t* tile, float* acc) {
    const uint32x4_t upper = vdupq_n_u32(0xFFFF0000);
    const int64_t last = row_ptr[n_rows] - 1;
    auto column = [&](int64_t p) { return tile + int64_t{col[p]} * (16 * kVectors); };
    auto add = [&](int64_t p, float32x4_t* s) {
        const uint8_t* x = column(p);
        for (int h = 0; h < kVectors; ++h) {
            const uint32x4_t two = vreinterpretq_u32_u8(vld1q_u8(x + 16 * h));
            const float32x4_t low = vreinterpretq_f32_u32(vshlq_n_u32(two, 16));
            const float32x4_t high = vreinterpretq_f32_u32(vandq_u32(two, upper));
            s[2 * h] = vfmaq_n_f32(s[2 * h], low, v[p - begin]);
            s[2 * h + 1] = vfmaq_n_f32(s[2 * h + 1], high, v[p - begin]);
        }
    };
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        float32x4_t s[2][2 * kVectors];
        for (auto& a : s)
            for (auto& b : a) b = vdupq_n_f32(0.0f);
        int64_t p = row_ptr[r];
        const int64_t end = row_ptr[r + 1];
        for (; p + 2 <= end; p += 2)
            for (int k = 0; k < 2; ++k) {
                const int64_t ahead = p + k + kAhead < last ? p + k + kAhead : last;
                __builtin_prefetch(column(ahead));
                add(p + k, s[k]);
            }
        if (p < end) add(p, s[0]);
        for (int h = 0; h < 2 * kVectors; ++h) vst1q_f32(acc + 4 * h, vaddq_f32(s[0][h], s[1][h]));
    }
}

void rows_bf16(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
               const uint8_t* tile, int64_t n_tokens, float* acc) {
    constexpr decltype(&rows_bf16_of<1>) of[] = {rows_bf16_of<1>, rows_bf16_of<2>, rows_bf16_of<3>,
                                                 rows_bf16_of<4>};
    of[vectors(n_tokens) - 1](row_ptr, n_rows, col, v, begin, tile, acc);
}

}  // namespace

void spread_tile_neon(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                      float* const* y) {
    for (int64_t t0 = 0; t0 < n_tokens; t0 += 4) {
        const int64_t n_t = n_tokens - t0 < 4 ? n_tokens - t0 : 4;
        int64_t r = 0;
        for (; r + 4 <= n_rows; r += 4) {
            uint32x4_t v[4];
            for (int64_t i = 0; i < 4; ++i)
                v[i] = vreinterpretq_u32_f32(vld1q_f32(acc + (r + i) * kTokenTile + t0));
            transpose4(v);
            for (int64_t i = 0; i < n_t; ++i) {
                float* at = y[t0 + i] + r;
                vst1q_f32(at, vfmaq_n_f32(vld1q_f32(at), vreinterpretq_f32_u32(v[i]), weight[t0 + i]));
            }
        }
        for (; r < n_rows; ++r)
            for (int64_t i = 0; i < n_t; ++i) y[t0 + i][r] += weight[t0 + i] * acc[r * kTokenTile + t0 + i];
    }
}

const TileOps kTileNeon = {plain_column_bytes, pack, rows};
const TileOps kTileNeonBf16 = {column_bytes_bf16, pack_bf16, rows_bf16};

}  // namespace sardine
