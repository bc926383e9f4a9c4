// The coarse tile with AVX-512's products of BF16 pairs: half the bytes and half the instructions of f32.
#include <immintrin.h>

#include "kernels/cpu_ops.h"
#include "kernels/tile_avx512.h"

namespace sardine {
namespace {

static_assert(kTokenTile == 32, "a line of the cache a column");

int64_t column_bytes(int64_t) {
    return 64;
}

// A column's line holds two tokens in each 32 bits, in the order in which unpacking two lines gives the
// tokens 0 to 15 and 16 to 31.
int first_token(int slot) {
    return (slot & 2 ? 16 : 0) + 4 * (slot / 4) + 2 * (slot & 1);
}

__m512i widen_bits(const float* row, __mmask16 mask) {
    const __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, row));
    return _mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(half));
}

void pack(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    for (int64_t c = 0; c < width; c += 16) {
        const int64_t n = width - c < 16 ? width - c : 16;
        const auto mask = static_cast<__mmask16>((1u << n) - 1);
        __m512i v[16];
        for (int s = 0; s < 16; ++s) {
            const int t = first_token(s);
            v[s] = t < n_rows ? widen_bits(rows[t] + c, mask) : _mm512_setzero_si512();
            if (t + 1 < n_rows)
                v[s] = _mm512_or_si512(v[s], _mm512_slli_epi32(widen_bits(rows[t + 1] + c, mask), 16));
        }
        transpose16(v);
        for (int64_t i = 0; i < n; ++i) _mm512_storeu_si512(tile + (c + i) * 64, v[i]);
    }
}

void narrow(float* v, int64_t n) {
    auto* out = reinterpret_cast<uint8_t*>(v);  // in place: it falls behind what is read
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t m = n - i < 16 ? n - i : 16;
        const auto mask = static_cast<__mmask16>((1u << m) - 1);
        const __m256bh half = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, v + i));
        _mm256_mask_storeu_epi16(out + 2 * i, mask, reinterpret_cast<const __m256i&>(half));
    }
}

// kHalf: of the first 16 tokens alone.
template <bool kHalf>
struct Sums {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    void add(__m512i a, __m512i b, __m512i v) {
        const __m512i lo = _mm512_unpacklo_epi16(a, b);
        low = _mm512_dpbf16_ps(low, reinterpret_cast<const __m512bh&>(lo),
                               reinterpret_cast<const __m512bh&>(v));
        if (kHalf) return;
        const __m512i hi = _mm512_unpackhi_epi16(a, b);
        high = _mm512_dpbf16_ps(high, reinterpret_cast<const __m512bh&>(hi),
                                reinterpret_cast<const __m512bh&>(v));
    }
};

template <bool kHalf>
void rows_of(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const uint8_t* values,
             int64_t begin, const uint8_t* tile, float* acc) {
    auto line = [&](int64_t p) { return _mm512_loadu_si512(tile + int64_t{col[p]} * 64); };
    auto pair = [&](int64_t p) {
        int two;
        __builtin_memcpy(&two, values + 2 * (p - begin), sizeof two);
        return _mm512_set1_epi32(two);
    };
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        Sums<kHalf> s[4];  // four pairs at a time hide the latency of the product
        int64_t p = row_ptr[r];
        const int64_t end = row_ptr[r + 1];
        for (; p + 8 <= end; p += 8)
            for (int k = 0; k < 4; ++k) s[k].add(line(p + 2 * k), line(p + 2 * k + 1), pair(p + 2 * k));
        for (; p + 2 <= end; p += 2) s[0].add(line(p), line(p + 1), pair(p));
        if (p < end) {
            uint16_t one;
            __builtin_memcpy(&one, values + 2 * (p - begin), sizeof one);
            s[1].add(line(p), _mm512_setzero_si512(), _mm512_set1_epi32(one));
        }
        auto total = [](__m512 a, __m512 b, __m512 c, __m512 d) {
            return _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        };
        _mm512_storeu_ps(acc, total(s[0].low, s[1].low, s[2].low, s[3].low));
        if (!kHalf) _mm512_storeu_ps(acc + 16, total(s[0].high, s[1].high, s[2].high, s[3].high));
    }
}

void rows(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
          const uint8_t* tile, int64_t n_tokens, float* acc) {
    narrow(v, row_ptr[n_rows] - begin);
    const auto* values = reinterpret_cast<const uint8_t*>(v);
    (n_tokens <= 16 ? rows_of<true> : rows_of<false>)(row_ptr, n_rows, col, values, begin, tile, acc);
}

}  // namespace

const TileOps kTileAvx512Bf16 = {column_bytes, pack, rows};

}  // namespace sardine
