// Built with AVX-512 flags: no standard library templates here, their copies could be linked into other
// files.
#include <immintrin.h>

#include "kernels/attention_impl.h"
#include "kernels/cpu_ops.h"
#include "kernels/q8_block.h"

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

void rows_dot(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v, int64_t begin,
              const float* x, float* y) {
    for (int64_t r = 0; r < n_rows; ++r) {
        int64_t p = row_ptr[r];
        const int64_t end = row_ptr[r + 1];
        __m512 sum = _mm512_setzero_ps();
        for (; p + 16 <= end; p += 16) {
            const __m512i c =
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(col + p)));
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(v + (p - begin)), _mm512_i32gather_ps(c, x, 4), sum);
        }
        if (p < end) {
            const __mmask16 mask = tail_mask(end - p);
            const __m512i c = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, col + p));
            const __m512 xs = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, c, x, 4);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, v + (p - begin)), xs, sum);
        }
        y[r] += _mm512_reduce_add_ps(sum);
    }
}

void rows_tile(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v, int64_t begin,
               const float* xt, float* acc) {
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
                s[k][1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc + 16), s[k][1]);
            }
        for (; p < end; ++p) {
            const __m512 w = _mm512_set1_ps(v[p - begin]);
            const float* xc = xt + static_cast<int64_t>(col[p]) * kTokenTile;
            s[0][0] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc), s[0][0]);
            s[0][1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(xc + 16), s[0][1]);
        }
        for (int h = 0; h < 2; ++h)
            _mm512_storeu_ps(acc + 16 * h,
                             _mm512_add_ps(_mm512_add_ps(s[0][h], s[1][h]), _mm512_add_ps(s[2][h], s[3][h])));
    }
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

}  // namespace

const CpuOps kCpuOpsAvx512 = {"avx512",
                              add_values,
                              rows_dot,
                              rows_tile,
                              attention_scores_impl<Lanes>,
                              attention_exp_impl<Lanes>,
                              attention_weigh_impl<Lanes>};

}  // namespace sardine
