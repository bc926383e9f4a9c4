// The inner loops of attention over a vector type V of one instruction set; included by each cpu_ops_*.cpp,
// whose V has internal linkage, so that no copy built with other flags can be linked in its place.
//
// V: kLanes, Reg, zero(), set1(float), fma(a, b, c), sum(Reg), load(const float*, n), store(float*, n, Reg),
//    load_kv(KvType, const uint8_t* row, first element, n); n <= kLanes elements count, others read as zero.
//    Of q8_0 rows n is kLanes and first a multiple of it, which never straddles two blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu_ops.h"

namespace sardine {

// The number of heads is a constant of each copy: sums indexed by a variable would live in memory.
template <typename V, int N>
void scores_of_heads(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                     const float* q, float* scores) {
    for (int64_t j = 0; j < n_pos; ++j) {
        const uint8_t* row = rows + j * row_bytes;
        typename V::Reg sum[N];
        for (int h = 0; h < N; ++h) sum[h] = V::zero();
        for (int64_t c = 0; c < dim; c += V::kLanes) {
            const int64_t m = dim - c < V::kLanes ? dim - c : V::kLanes;
            const auto k = V::load_kv(type, row, c, m);
            for (int h = 0; h < N; ++h) sum[h] = V::fma(k, V::load(q + h * dim + c, m), sum[h]);
        }
        for (int h = 0; h < N; ++h) scores[h * kAttentionBlock + j] = V::sum(sum[h]);
    }
}

template <typename V, int N, int R>
void weigh_columns(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                   const float* weights, float* out, int64_t first, int64_t last_lanes) {
    typename V::Reg sum[N][R];
    auto lanes = [&](int r) { return r == R - 1 ? last_lanes : V::kLanes; };
    for (int h = 0; h < N; ++h)
        for (int r = 0; r < R; ++r) sum[h][r] = V::load(out + h * dim + first + r * V::kLanes, lanes(r));
    for (int64_t j = 0; j < n_pos; ++j)
        for (int r = 0; r < R; ++r) {
            const auto v = V::load_kv(type, rows + j * row_bytes, first + r * V::kLanes, lanes(r));
            for (int h = 0; h < N; ++h)
                sum[h][r] = V::fma(V::set1(weights[h * kAttentionBlock + j]), v, sum[h][r]);
        }
    for (int h = 0; h < N; ++h)
        for (int r = 0; r < R; ++r) V::store(out + h * dim + first + r * V::kLanes, lanes(r), sum[h][r]);
}

template <typename V, int N>
void weigh_heads(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                 const float* weights, float* out) {
    constexpr int R = V::kRegisters / (2 * N) < 1 ? 1 : V::kRegisters / (2 * N);
    int64_t c = 0;
    for (; c + R * V::kLanes <= dim; c += R * V::kLanes)
        weigh_columns<V, N, R>(type, rows, row_bytes, n_pos, dim, weights, out, c, V::kLanes);
    for (; c < dim; c += V::kLanes)
        weigh_columns<V, N, 1>(type, rows, row_bytes, n_pos, dim, weights, out, c,
                               dim - c < V::kLanes ? dim - c : V::kLanes);
}

// e^x for x <= 0 by range reduction and a polynomial, within 2 units in the last place; NaN stays NaN. Below
// -87, where the result would be subnormal, it is e^-87. Written for the compiler to vectorise.
inline float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3F800000;  // 2^n: the low bits of `shifted` are n
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

template <typename V>
float attention_exp_impl(float* weights, int64_t n, float top) {
    for (int64_t i = 0; i < n; ++i) weights[i] = exp_of_negative(weights[i] - top);
    auto sum = V::zero();
    for (int64_t i = 0; i < n; i += V::kLanes)
        sum = V::fma(V::set1(1.0f), V::load(weights + i, n - i < V::kLanes ? n - i : V::kLanes), sum);
    return V::sum(sum);
}

template <typename V>
void attention_scores_impl(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                           const float* q, int64_t n_heads, float* scores) {
    int64_t h = 0;
    for (; h + 4 <= n_heads; h += 4)
        scores_of_heads<V, 4>(type, rows, row_bytes, n_pos, dim, q + h * dim, scores + h * kAttentionBlock);
    for (; h < n_heads; ++h)
        scores_of_heads<V, 1>(type, rows, row_bytes, n_pos, dim, q + h * dim, scores + h * kAttentionBlock);
}

template <typename V>
void attention_weigh_impl(KvType type, const uint8_t* rows, size_t row_bytes, int64_t n_pos, int64_t dim,
                          const float* weights, int64_t n_heads, float* out) {
    int64_t h = 0;
    for (; h + 4 <= n_heads; h += 4)
        weigh_heads<V, 4>(type, rows, row_bytes, n_pos, dim, weights + h * kAttentionBlock, out + h * dim);
    for (; h < n_heads; ++h)
        weigh_heads<V, 1>(type, rows, row_bytes, n_pos, dim, weights + h * kAttentionBlock, out + h * dim);
}

}  // namespace sardine
