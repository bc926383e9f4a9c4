// Built with AVX2 flags: no standard library templates here, their copies could be linked into other files.
#include <immintrin.h>

#include "kernels/attention_impl.h"
#include "kernels/cpu_ops.h"
#include "kernels/q8_block.h"
#include "kernels/x86_gather.h"

namespace sardine {
namespace {

void store(float* out, __m256 v, bool accumulate) {
    _mm256_storeu_ps(out, accumulate ? _mm256_add_ps(v, _mm256_loadu_ps(out)) : v);
}

void add_values(ValueType type, const uint8_t* val, int64_t begin, int64_t n, float weight, bool accumulate,
                float* out) {
    const __m256 w = _mm256_set1_ps(weight);
    if (type == ValueType::q8_0) {
        const auto* block = reinterpret_cast<const Q8Block*>(val) + begin / kQ8Block;
        for (int64_t i = 0; i < n; i += kQ8Block, ++block, out += kQ8Block) {
            const __m256 d = _mm256_mul_ps(w, _mm256_set1_ps(_cvtsh_ss(block->d)));
            for (int part = 0; part < 4; ++part) {
                const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block->q + 8 * part));
                store(out + 8 * part, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q))),
                      accumulate);
            }
        }
        return;
    }
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v =
            type == ValueType::f32
                ? _mm256_loadu_ps(reinterpret_cast<const float*>(val + 4 * (begin + i)))
                : _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(val + 2 * (begin + i))));
        store(out + i, _mm256_mul_ps(w, v), accumulate);
    }
    for (; i < n; ++i) {
        const float v = type == ValueType::f32 ? reinterpret_cast<const float*>(val)[begin + i]
                                               : _cvtsh_ss(reinterpret_cast<const uint16_t*>(val)[begin + i]);
        out[i] = accumulate ? out[i] + weight * v : weight * v;
    }
}

float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

__m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// How far ahead lines are fetched, in blocks, to the second-level cache: the processor's own prefetch ends
// with each page, and the first level is full of x.
constexpr int64_t kAhead = 96;

// v[h] = sum over the parts of weight * block i's values
template <int N>
inline void mix_block(const Q8Block* const* blocks, const WeightedValues* parts, int64_t n_parts, int64_t i,
                      __m256 v[4]) {
    for (int64_t j = 0; j < (N > 0 ? N : n_parts); ++j) {
        const Q8Block& block = blocks[j][i];
        _mm_prefetch(reinterpret_cast<const char*>(&block + kAhead), _MM_HINT_T1);
        const __m256 d = _mm256_set1_ps(parts[j].weight * _cvtsh_ss(block.d));
        for (int h = 0; h < 4; ++h) {
            const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block.q + 8 * h));
            const __m256 f = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
            v[h] = j == 0 ? _mm256_mul_ps(d, f) : _mm256_fmadd_ps(d, f, v[h]);
        }
    }
}

// out[i] = mixed[begin + i] * x[col[begin + i]] for i in [lead, n); begin is a multiple of 32, lead < 32.
// N is n_parts, or 0 where it is another number than those that have a copy of their own.
template <int N>
void products(const uint16_t* col, const WeightedValues* parts, int64_t n_parts, int64_t begin, int64_t lead,
              int64_t n, const float* x, float* out) {
    const Q8Block* blocks[N > 0 ? N : kMostParts];
    for (int64_t j = 0; j < (N > 0 ? N : n_parts); ++j)
        blocks[j] = reinterpret_cast<const Q8Block*>(parts[j].data) + begin / kQ8Block;
    col += begin;
    // Columns of the positions around belong to other rows, maybe of a wider block. Blocks with such are done
    // apart, so that the loop over the others is free of branches and calls.
    auto edge = [&](int64_t i) {
        __m256 v[4];
        mix_block<N>(blocks, parts, n_parts, i / kQ8Block, v);
        float values[kQ8Block];
        for (int h = 0; h < 4; ++h) _mm256_storeu_ps(values + 8 * h, v[h]);
        const int64_t first = i < lead ? lead - i : 0, last = n - i < kQ8Block ? n - i : kQ8Block;
        for (int64_t p = first; p < last; ++p) out[i + p] = values[p] * x[col[i + p]];
    };
    int64_t i = 0;
    if (lead > 0) {
        edge(0);
        i = kQ8Block;
    }
    for (; i + kQ8Block <= n; i += kQ8Block) {
        __m256 v[4];
        mix_block<N>(blocks, parts, n_parts, i / kQ8Block, v);
        _mm_prefetch(reinterpret_cast<const char*>(col + i + kAhead * kQ8Block), _MM_HINT_T1);
        for (int h = 0; h < 4; ++h)
            _mm256_storeu_ps(out + i + 8 * h, _mm256_mul_ps(v[h], gather8(x, col + i + 8 * h)));
    }
    if (i < n) edge(i);
}

// The same for values of other types, which are in `out` already.
void multiply(const uint16_t* col, int64_t lead, int64_t n, const float* x, float* out) {
    int64_t i = lead;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(out + i), gather8(x, col + i)));
    for (; i < n; ++i) out[i] *= x[col[i]];
}

// The last 32 without a branch: rows' lengths are too irregular to be foreseen.
__m256 sum_of(const float* v, int64_t n) {
    __m256 s[4];
    for (auto& a : s) a = _mm256_setzero_ps();
    for (; n > 32; n -= 32, v += 32)
        for (int h = 0; h < 4; ++h) s[h] = _mm256_add_ps(s[h], _mm256_loadu_ps(v + 8 * h));
    const __m256i left = _mm256_set1_epi32(static_cast<int>(n)), eight = _mm256_set1_epi32(8);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int h = 0; h < 4; ++h) {
        s[h] = _mm256_add_ps(s[h], _mm256_maskload_ps(v + 8 * h, _mm256_cmpgt_epi32(left, lane)));
        lane = _mm256_add_epi32(lane, eight);
    }
    return _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3]));
}

// y[r] += the sum of row r's products
void add_rows(const int32_t* row_ptr, int64_t n_rows, const float* v, int64_t begin, float* y) {
    auto row = [&](int64_t r) { return sum_of(v + (row_ptr[r] - begin), row_ptr[r + 1] - row_ptr[r]); };
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        const __m256 a = _mm256_hadd_ps(row(r), row(r + 1));
        const __m256 b = _mm256_hadd_ps(row(r + 2), row(r + 3));
        const __m256 c = _mm256_hadd_ps(a, b);
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
        _mm_storeu_ps(y + r, _mm_add_ps(_mm_loadu_ps(y + r), sums));
    }
    for (; r < n_rows; ++r) y[r] += sum8(row(r));
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

struct Lanes {
    static constexpr int64_t kLanes = 8;
    static constexpr int kRegisters = 16;
    using Reg = __m256;
    static Reg set1(float x) { return _mm256_set1_ps(x); }
    static Reg zero() { return _mm256_setzero_ps(); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(Reg a) { return sum8(a); }
    static Reg load(const float* p, int64_t n) {
        return n == kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
    }
    static void store(float* p, int64_t n, Reg r) {
        if (n == kLanes)
            _mm256_storeu_ps(p, r);
        else
            _mm256_maskstore_ps(p, first_lanes(n), r);
    }
    static Reg load_kv(KvType type, const uint8_t* row, int64_t first, int64_t n) {
        if (type == KvType::f32) return load(reinterpret_cast<const float*>(row) + first, n);
        if (type == KvType::q8_0) {
            const auto& block = reinterpret_cast<const Q8Block*>(row)[first / kQ8Block];
            const auto* q = reinterpret_cast<const __m128i*>(block.q + first % kQ8Block);
            return _mm256_mul_ps(_mm256_set1_ps(_cvtsh_ss(block.d)),
                                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(q))));
        }
        const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + first;
        if (n == kLanes) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        uint16_t part[kLanes] = {};
        for (int64_t i = 0; i < n; ++i) part[i] = p[i];
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(part)));
    }
};

}  // namespace

const CpuOps kCpuOpsAvx2 = {"avx2",
                            add_values,
                            rows_dot,
                            &kTileAvx2,
                            &kTileAvx2Bf16,
                            spread_tile_avx2,
                            attention_scores_impl<Lanes>,
                            attention_exp_impl<Lanes>,
                            attention_weigh_impl<Lanes>};

}  // namespace sardine
