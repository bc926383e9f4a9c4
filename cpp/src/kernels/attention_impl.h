// The two inner loops of attention over a vector type V of one instruction set; included by each
// cpu_ops_*.cpp, whose V has internal linkage, so that no copy built with other flags can be linked in its
// place.
//
// V: kLanes, Reg, zero(), set1(float), fma(a, b, c), sum(Reg), load(const float*, n), store(float*, n, Reg),
//    load_kv(KvType, const uint8_t* row, first element, n); n <= kLanes elements count, others read as zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu_ops.h"

namespace sardine {

template <typename V>
void attention_scores_impl(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                           const float* q, int64_t n_heads, float* scores) {
    constexpr int64_t kHeads = 4;
    for (int64_t h0 = 0; h0 < n_heads; h0 += kHeads) {
        const int64_t n = n_heads - h0 < kHeads ? n_heads - h0 : kHeads;
        for (int64_t j = 0; j < n_pos; ++j) {
            const uint8_t* row = rows + j * row_bytes;
            typename V::Reg sum[kHeads] = {V::zero(), V::zero(), V::zero(), V::zero()};
            for (int64_t c = 0; c < dim; c += V::kLanes) {
                const int64_t m = dim - c < V::kLanes ? dim - c : V::kLanes;
                const auto k = V::load_kv(type, row, c, m);
                for (int64_t h = 0; h < n; ++h)
                    sum[h] = V::fma(k, V::load(q + (h0 + h) * dim + c, m), sum[h]);
            }
            for (int64_t h = 0; h < n; ++h) scores[(h0 + h) * kAttentionBlock + j] = V::sum(sum[h]);
        }
    }
}

template <typename V>
void attention_weigh_impl(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                          const float* weights, int64_t n_heads, float* out) {
    constexpr int64_t kHeads = 4, kRegs = 2;
    constexpr int64_t kStep = kRegs * V::kLanes;
    for (int64_t h0 = 0; h0 < n_heads; h0 += kHeads) {
        const int64_t n = n_heads - h0 < kHeads ? n_heads - h0 : kHeads;
        for (int64_t c = 0; c < dim; c += kStep) {
            int64_t m[kRegs];
            typename V::Reg sum[kHeads][kRegs];
            for (int64_t r = 0; r < kRegs; ++r) {
                const int64_t left = dim - c - r * V::kLanes;
                m[r] = left < 0 ? 0 : left < V::kLanes ? left : V::kLanes;
                for (int64_t h = 0; h < kHeads; ++h)
                    sum[h][r] = h < n ? V::load(out + (h0 + h) * dim + c + r * V::kLanes, m[r]) : V::zero();
            }
            for (int64_t j = 0; j < n_pos; ++j)
                for (int64_t r = 0; r < kRegs; ++r) {
                    const auto v = V::load_kv(type, rows + j * row_bytes, c + r * V::kLanes, m[r]);
                    for (int64_t h = 0; h < kHeads; ++h)
                        if (h < n)
                            sum[h][r] =
                                V::fma(V::set1(weights[(h0 + h) * kAttentionBlock + j]), v, sum[h][r]);
                }
            for (int64_t h = 0; h < n; ++h)
                for (int64_t r = 0; r < kRegs; ++r)
                    V::store(out + (h0 + h) * dim + c + r * V::kLanes, m[r], sum[h][r]);
        }
    }
}

}  // namespace sardine
