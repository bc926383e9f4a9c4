// Built with AVX-512 flags: no standard library templates here, their copies could be linked into other
// files.
#include <immintrin.h>

#include "kernels/attention_impl.h"
#include "kernels/cpu_ops.h"
#include "kernels/q8_block.h"
#include "kernels/tile_avx512.h"
#include "kernels/x86_gather.h"

namespace sardine {
namespace {

__mmask16 tail_mask(int64_t n) {
    return static_cast<__mmask16>((1u << n) - 1);
}

void store(float* out, __mmask16 mask, __m512 v, bool accumulate) {
    if (accumulate) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, out));
    _mm512_mask_storeu_ps(out, mask, v);
}

void add_values(ValueType type, const uint8_t* val, int64_t begin, int64_t n, float weight, bool accumulate,
                float* out) {
    const __m512 w = _mm512_set1_ps(weight);
    if (type == ValueType::q8_0) {
        const auto* block = reinterpret_cast<const Q8Block*>(val) + begin / kQ8Block;
        for (int64_t i = 0; i < n; i += kQ8Block, ++block, out += kQ8Block) {
            const __m512 d = _mm512_mul_ps(w, _mm512_set1_ps(_cvtsh_ss(block->d)));
            for (int half = 0; half < 2; ++half) {
                const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block->q + 16 * half));
                store(out + 16 * half, 0xFFFF, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q))),
                      accumulate);
            }
        }
        return;
    }
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = n - i >= 16 ? 0xFFFF : tail_mask(n - i);
        const __m512 v = type == ValueType::f32
                             ? _mm512_maskz_loadu_ps(mask, val + 4 * (begin + i))
                             : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, val + 2 * (begin + i)));
        store(out + i, mask, _mm512_mul_ps(w, v), accumulate);
    }
}

// A block's worth of positions: 32 values times their x.
__m512 gather16(const float* x, const uint16_t* col) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(gather8(x, col)), gather8(x, col + 8), 1);
}

void multiply_block(const uint16_t* col, const float* x, __m512 low, __m512 high, float* out) {
    _mm512_storeu_ps(out, _mm512_mul_ps(low, gather16(x, col)));
    _mm512_storeu_ps(out + 16, _mm512_mul_ps(high, gather16(x, col + 16)));
}

// How far ahead lines are fetched, in blocks, to the second-level cache: the processor's own prefetch ends
// with each page, and the first level is full of x.
constexpr int64_t kAhead = 96;

// out[i] = mixed[begin + i] * x[col[begin + i]] for i in [lead, n); begin is a multiple of 32, lead < 32.
// N is n_parts, or 0 where it is another number than those that have a copy of their own.
template <int N>
void products(const uint16_t* col, const WeightedValues* parts, int64_t n_parts, int64_t begin, int64_t lead,
              int64_t n, const float* x, float* out) {
    const int64_t count = N > 0 ? N : n_parts;
    const Q8Block* blocks[N > 0 ? N : 1];
    auto data = [&](int64_t j) { return reinterpret_cast<const Q8Block*>(parts[j].data) + begin / kQ8Block; };
    for (int j = 0; j < N; ++j) blocks[j] = data(j);
    col += begin;
    for (int64_t i = 0; i < n; i += kQ8Block) {
        __m512 low = _mm512_setzero_ps(), high = low;
        for (int64_t j = 0; j < count; ++j) {
            const Q8Block* block = (N > 0 ? blocks[j] : data(j)) + i / kQ8Block;
            _mm_prefetch(reinterpret_cast<const char*>(block + kAhead), _MM_HINT_T1);
            const __m512 d = _mm512_set1_ps(parts[j].weight * _cvtsh_ss(block->d));
            const auto* q = reinterpret_cast<const __m128i*>(block->q);
            low = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q))), low);
            high = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1))), high);
        }
        _mm_prefetch(reinterpret_cast<const char*>(col + i + kAhead * kQ8Block), _MM_HINT_T1);
        if (__builtin_expect(i >= lead && i + kQ8Block <= n, 1)) {
            multiply_block(col + i, x, low, high, out + i);
            continue;
        }
        // Columns of the positions around belong to other rows, maybe of a wider block.
        const int64_t first = i < lead ? lead - i : 0, last = n - i < kQ8Block ? n - i : kQ8Block;
        const auto mask = static_cast<__mmask32>((last == 32 ? ~0u : (1u << last) - 1) & ~0u << first);
        uint16_t own[kQ8Block];
        _mm512_storeu_si512(own, _mm512_maskz_loadu_epi16(mask, col + i));
        multiply_block(own, x, low, high, out + i);
    }
}

// The same for values of other types, which are in `out` already.
void multiply(const uint16_t* col, int64_t lead, int64_t n, const float* x, float* out) {
    int64_t i = lead;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(out + i), gather8(x, col + i)));
    for (; i < n; ++i) out[i] *= x[col[i]];
}

// Sums of up to 64 values without a branch: the lengths of rows are too irregular to be foreseen.
__m512 sum_of(const float* v, int64_t n) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    for (; n > 64; n -= 64, v += 64) {
        s0 = _mm512_add_ps(s0, _mm512_loadu_ps(v));
        s1 = _mm512_add_ps(s1, _mm512_loadu_ps(v + 16));
        s2 = _mm512_add_ps(s2, _mm512_loadu_ps(v + 32));
        s3 = _mm512_add_ps(s3, _mm512_loadu_ps(v + 48));
    }
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    auto part = [&](int first) {
        const auto left = _mm512_set1_epi32(static_cast<int>(n) - first);
        return _mm512_maskz_loadu_ps(_mm512_cmplt_epi32_mask(lane, left), v + first);
    };
    s0 = _mm512_add_ps(s0, part(0));
    s1 = _mm512_add_ps(s1, part(16));
    s2 = _mm512_add_ps(s2, part(32));
    s3 = _mm512_add_ps(s3, part(48));
    return _mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3));
}

__m256 halves(__m512 v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

// y[r] += the sum of row r's products
void add_rows(const int32_t* row_ptr, int64_t n_rows, const float* v, int64_t begin, float* y) {
    auto row = [&](int64_t r) { return sum_of(v + (row_ptr[r] - begin), row_ptr[r + 1] - row_ptr[r]); };
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        const __m256 a = _mm256_hadd_ps(halves(row(r)), halves(row(r + 1)));
        const __m256 b = _mm256_hadd_ps(halves(row(r + 2)), halves(row(r + 3)));
        const __m256 c = _mm256_hadd_ps(a, b);
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
        _mm_storeu_ps(y + r, _mm_add_ps(_mm_loadu_ps(y + r), sums));
    }
    for (; r < n_rows; ++r) y[r] += _mm512_reduce_add_ps(row(r));
}

void rows_dot(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const WeightedValues* parts,
              int64_t n_parts, const float* x, float* y, float* scratch) {
    const int64_t begin = row_ptr[0] / kQ8Block * kQ8Block;
    const int64_t lead = row_ptr[0] - begin, n = row_ptr[n_rows] - begin;
    bool blocks = true;
    for (int64_t j = 0; j < n_parts; ++j) blocks &= parts[j].type == ValueType::q8_0;
    if (blocks) {
        auto* run = n_parts == 1 ? products<1> : n_parts == 2 ? products<2> : products<0>;
        run(col, parts, n_parts, begin, lead, n, x, scratch);
    } else {
        for (int64_t j = 0; j < n_parts; ++j)
            add_values(parts[j].type, parts[j].data, begin, n, parts[j].weight, j > 0, scratch);
        multiply(col + begin, lead, n, x, scratch);
    }
    add_rows(row_ptr, n_rows, scratch, begin, y);
}

// Of f32: two blocks of 16 tokens a column.
void pack_tile(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    for (int64_t c = 0; c < width; c += 16) {
        const int64_t n = width - c < 16 ? width - c : 16;
        for (int64_t half = 0; half < 2; ++half) {
            __m512i v[16];
            for (int64_t i = 0; i < 16; ++i)
                v[i] = 16 * half + i < n_rows
                           ? _mm512_maskz_loadu_epi32(tail_mask(n), rows[16 * half + i] + c)
                           : _mm512_setzero_si512();
            transpose16(v);
            for (int64_t i = 0; i < n; ++i)
                _mm512_storeu_si512(tile + ((c + i) * kTokenTile + 16 * half) * sizeof(float), v[i]);
        }
    }
}

void spread_tile(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight, float* const* y) {
    alignas(64) float turned[16][kSpanRows];
    for (int64_t r0 = 0; r0 < n_rows; r0 += kSpanRows) {
        const int64_t m = n_rows - r0 < kSpanRows ? n_rows - r0 : kSpanRows;
        for (int64_t t0 = 0; t0 < n_tokens; t0 += 16) {
            const int64_t n_t = n_tokens - t0 < 16 ? n_tokens - t0 : 16;
            for (int64_t r = 0; r < m; r += 16) {
                __m512i v[16];
                for (int64_t i = 0; i < 16; ++i)
                    v[i] = r + i < m ? _mm512_loadu_si512(acc + (r0 + r + i) * kTokenTile + t0)
                                     : _mm512_setzero_si512();
                transpose16(v);
                for (int64_t t = 0; t < 16; ++t) _mm512_store_si512(&turned[t][r], v[t]);
            }
            for (int64_t t = 0; t < n_t; ++t) {
                const __m512 w = _mm512_set1_ps(weight[t0 + t]);
                float* at = y[t0 + t] + r0;
                for (int64_t r = 0; r < m; r += 16) {
                    const __mmask16 mask = tail_mask(m - r < 16 ? m - r : 16);
                    const __m512 sum = _mm512_fmadd_ps(w, _mm512_load_ps(&turned[t][r]),
                                                       _mm512_maskz_loadu_ps(mask, at + r));
                    _mm512_mask_storeu_ps(at + r, mask, sum);
                }
            }
        }
    }
}

template <int kHalves>
void rows_tile_of(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
                  const uint8_t* tile, float* acc) {
    const auto* xt = reinterpret_cast<const float*>(tile);
    static_assert(kTokenTile == 32, "two vectors a position");
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        // Four positions at a time, so that eight independent sums hide the latency of the multiply-add.
        __m512 s[4][2];
        for (auto& a : s) a[0] = a[1] = _mm512_setzero_ps();
        int64_t p = row_ptr[r];
        const int64_t end = row_ptr[r + 1];
        for (; p + 4 <= end; p += 4)
            for (int k = 0; k < 4; ++k) {
                const __m512 w = _mm512_set1_ps(v[p + k - begin]);
                const float* xc = xt + static_cast<int64_t>(col[p + k]) * kTokenTile;
                s[k][0] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc), s[k][0]);
                if (kHalves > 1) s[k][1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc + 16), s[k][1]);
            }
        for (; p < end; ++p) {
            const __m512 w = _mm512_set1_ps(v[p - begin]);
            const float* xc = xt + static_cast<int64_t>(col[p]) * kTokenTile;
            s[0][0] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc), s[0][0]);
            if (kHalves > 1) s[0][1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc + 16), s[0][1]);
        }
        for (int h = 0; h < kHalves; ++h)
            _mm512_storeu_ps(acc + 16 * h,
                             _mm512_add_ps(_mm512_add_ps(s[0][h], s[1][h]), _mm512_add_ps(s[2][h], s[3][h])));
    }
}

void rows_tile(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
               const uint8_t* tile, int64_t n_tokens, float* acc) {
    (n_tokens <= 16 ? rows_tile_of<1> : rows_tile_of<2>)(row_ptr, n_rows, col, v, begin, tile, acc);
}

struct Lanes {
    static constexpr int64_t kLanes = 16;
    static constexpr int kRegisters = 32;
    using Reg = __m512;
    static Reg set1(float x) { return _mm512_set1_ps(x); }
    static Reg zero() { return _mm512_setzero_ps(); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(Reg a) { return _mm512_reduce_add_ps(a); }
    static Reg load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(tail_mask(n), p); }
    static void store(float* p, int64_t n, Reg r) { _mm512_mask_storeu_ps(p, tail_mask(n), r); }
    static Reg load_kv(KvType type, const uint8_t* row, int64_t first, int64_t n) {
        if (type == KvType::f32) return load(reinterpret_cast<const float*>(row) + first, n);
        if (type == KvType::q8_0) {
            const auto& block = reinterpret_cast<const Q8Block*>(row)[first / kQ8Block];
            const auto* q = reinterpret_cast<const __m128i*>(block.q + first % kQ8Block);
            return _mm512_mul_ps(_mm512_set1_ps(_cvtsh_ss(block.d)),
                                 _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q))));
        }
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(tail_mask(n), row + 2 * first));
    }
};

const TileOps kTile = {plain_column_bytes, pack_tile, rows_tile};

}  // namespace

const CpuOps kCpuOpsAvx512 = {"avx512",
                              add_values,
                              rows_dot,
                              &kTile,
                              &kTile,
                              spread_tile,
                              attention_scores_impl<Lanes>,
                              attention_exp_impl<Lanes>,
                              attention_weigh_impl<Lanes>};

const CpuOps kCpuOpsAvx512Bf16 = {"avx512bf16",
                                  add_values,
                                  rows_dot,
                                  &kTile,
                                  &kTileAvx512Bf16,
                                  spread_tile,
                                  attention_scores_impl<Lanes>,
                                  attention_exp_impl<Lanes>,
                                  attention_weigh_impl<Lanes>};

}  // namespace sardine
