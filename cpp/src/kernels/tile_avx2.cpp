// Tiles with AVX2: of f32, and the coarse one of BF16 pairs, half the bytes. Built with AVX2 flags: no
// standard library templates here, their copies could be linked into other files.
#include <immintrin.h>

#include "kernels/cpu_ops.h"

namespace sardine {
namespace {

static_assert(kTokenTile == 32, "four vectors of f32 a column");

__m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Row i of v becomes column i.
void transpose8(__m256i v[8]) {
    __m256i t[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    // w[4 * i + c] holds, in its lane l of 128 bits, column 4 * l + c of rows 4 * i to 4 * i + 3.
    __m256i w[8];
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
            w[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + j + 2]);
            w[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + j + 2]);
        }
    for (int c = 0; c < 4; ++c) {
        v[c] = _mm256_permute2x128_si256(w[c], w[4 + c], 0x20);
        v[4 + c] = _mm256_permute2x128_si256(w[c], w[4 + c], 0x31);
    }
}

// Eight rows' columns [c, c + n), n <= 8, of the tokens from `first` on; missing ones are zero.
void load_columns(const float* const* rows, int64_t n_rows, int64_t first, int64_t c, int64_t n,
                  __m256i v[8]) {
    for (int64_t i = 0; i < 8; ++i) {
        if (first + i >= n_rows)
            v[i] = _mm256_setzero_si256();
        else if (n == 8)
            v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[first + i] + c));
        else
            v[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(rows[first + i] + c), first_lanes(n));
    }
    transpose8(v);
}

void store(uint8_t* at, __m256i v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), v);
}

// [width][kTokenTile] floats
void pack(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    for (int64_t c = 0; c < width; c += 8) {
        const int64_t n = width - c < 8 ? width - c : 8;
        for (int64_t t = 0; t < kTokenTile; t += 8) {
            __m256i v[8];
            load_columns(rows, n_rows, t, c, n, v);
            for (int64_t i = 0; i < n; ++i)
                store(tile + ((c + i) * kTokenTile + t) * int64_t{sizeof(float)}, v[i]);
        }
    }
}

void rows(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
          const uint8_t* tile, int64_t n_tokens, float* acc) {
    const auto* xt = reinterpret_cast<const float*>(tile);
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        // Two positions at a time: eight independent sums hide the latency of the multiply-add.
        __m256 s[2][4];
        for (auto& a : s)
            for (auto& b : a) b = _mm256_setzero_ps();
        int64_t p = row_ptr[r];
        const int64_t end = row_ptr[r + 1];
        for (; p + 2 <= end; p += 2)
            for (int k = 0; k < 2; ++k) {
                const __m256 w = _mm256_set1_ps(v[p + k - begin]);
                const float* xc = xt + int64_t{col[p + k]} * kTokenTile;
                for (int h = 0; h < 4; ++h)
                    s[k][h] = _mm256_fmadd_ps(w, _mm256_loadu_ps(xc + 8 * h), s[k][h]);
            }
        if (p < end) {
            const __m256 w = _mm256_set1_ps(v[p - begin]);
            const float* xc = xt + int64_t{col[p]} * kTokenTile;
            for (int h = 0; h < 4; ++h) s[0][h] = _mm256_fmadd_ps(w, _mm256_loadu_ps(xc + 8 * h), s[0][h]);
        }
        for (int h = 0; h < 4; ++h) _mm256_storeu_ps(acc + 8 * h, _mm256_add_ps(s[0][h], s[1][h]));
    }
}

// The nearest BF16, ties to even, in the upper half of each f32; NaN stays NaN.
__m256i nearest_bf16(__m256i x) {
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(x, 16), one);
    const __m256i up = _mm256_add_epi32(x, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF)));
    const __m256 f = _mm256_castsi256_ps(x);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
    return _mm256_and_si256(_mm256_blendv_epi8(up, quiet, nan),
                            _mm256_set1_epi32(static_cast<int>(0xFFFF0000)));
}

// A column has a vector for each 16 tokens there are: lane i holds token i below and token 8 + i above.
int64_t halves(int64_t n_tokens) {
    return n_tokens <= 16 ? 1 : 2;
}

int64_t column_bytes_bf16(int64_t n_tokens) {
    return 32 * halves(n_tokens);
}

// Whole lines of x at a time: its rows often lie a power of two apart, where the cache holds but eight of
// them.
void pack_bf16(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    const int64_t n_halves = halves(n_rows);
    for (int64_t c = 0; c < width; c += 16) {
        const int64_t n = width - c < 16 ? width - c : 16;
        for (int64_t h = 0; h < n_halves; ++h) {
            __m256i low[16], high[16];
            auto load = [&](int64_t first, __m256i* v) {
                for (int64_t i = 0; i < n; i += 8)
                    load_columns(rows, n_rows, first, c + i, n - i < 8 ? n - i : 8, v + i);
            };
            load(16 * h, low);
            load(16 * h + 8, high);
            for (int64_t i = 0; i < n; ++i)
                store(tile + ((c + i) * n_halves + h) * 32,
                      _mm256_or_si256(_mm256_srli_epi32(nearest_bf16(low[i]), 16), nearest_bf16(high[i])));
        }
    }
}

// How many positions ahead a column's line is fetched: rows end unforeseeably, and what is loaded on a wrong
// path is lost time.
constexpr int64_t kAhead = 24;

template <int kHalves>
void rows_bf16_of(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v, int64_t begin,
                  const uint8_t* tile, float* acc) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    const int64_t last = row_ptr[n_rows] - 1;
    auto column = [&](int64_t p) { return tile + int64_t{col[p]} * (32 * kHalves); };
    auto add = [&](int64_t p, __m256* s) {
        const __m256 w = _mm256_set1_ps(v[p - begin]);
        const uint8_t* x = column(p);
        for (int h = 0; h < kHalves; ++h) {
            const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32 * h));
            const __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32(two, 16));
            const __m256 high = _mm256_castsi256_ps(_mm256_and_si256(two, upper));
            s[2 * h] = _mm256_fmadd_ps(w, low, s[2 * h]);
            s[2 * h + 1] = _mm256_fmadd_ps(w, high, s[2 * h + 1]);
        }
    };
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        __m256 s[2][2 * kHalves];
        for (auto& a : s)
            for (auto& b : a) b = _mm256_setzero_ps();
        int64_t p = row_ptr[r];
        const int64_t end = row_ptr[r + 1];
        for (; p + 2 <= end; p += 2)
            for (int k = 0; k < 2; ++k) {
                const int64_t ahead = p + k + kAhead < last ? p + k + kAhead : last;
                _mm_prefetch(reinterpret_cast<const char*>(column(ahead)), _MM_HINT_T0);
                add(p + k, s[k]);
            }
        if (p < end) add(p, s[0]);
        for (int h = 0; h < 2 * kHalves; ++h) _mm256_storeu_ps(acc + 8 * h, _mm256_add_ps(s[0][h], s[1][h]));
    }
}

void rows_bf16(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
               const uint8_t* tile, int64_t n_tokens, float* acc) {
    (n_tokens <= 16 ? rows_bf16_of<1> : rows_bf16_of<2>)(row_ptr, n_rows, col, v, begin, tile, acc);
}

}  // namespace

void spread_tile_avx2(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                      float* const* y) {
    // Tokens outside: their rows of y often lie a power of two apart, where the caches hold but eight of
    // them.
    for (int64_t t0 = 0; t0 < n_tokens; t0 += 8) {
        const int64_t n_t = n_tokens - t0 < 8 ? n_tokens - t0 : 8;
        for (int64_t r = 0; r < n_rows; r += 8) {
            const int64_t n = n_rows - r < 8 ? n_rows - r : 8;
            __m256i v[8];
            for (int64_t i = 0; i < 8; ++i)
                v[i] = i < n ? _mm256_loadu_si256(
                                   reinterpret_cast<const __m256i*>(acc + (r + i) * kTokenTile + t0))
                             : _mm256_setzero_si256();
            transpose8(v);
            for (int64_t i = 0; i < n_t; ++i) {
                const __m256 w = _mm256_set1_ps(weight[t0 + i]), a = _mm256_castsi256_ps(v[i]);
                float* at = y[t0 + i] + r;
                if (n == 8) {
                    _mm256_storeu_ps(at, _mm256_fmadd_ps(w, a, _mm256_loadu_ps(at)));
                } else {
                    const __m256i mask = first_lanes(n);
                    _mm256_maskstore_ps(at, mask, _mm256_fmadd_ps(w, a, _mm256_maskload_ps(at, mask)));
                }
            }
        }
    }
}

const TileOps kTileAvx2 = {plain_column_bytes, pack, rows};
const TileOps kTileAvx2Bf16 = {column_bytes_bf16, pack_bf16, rows_bf16};

}  // namespace sardine
