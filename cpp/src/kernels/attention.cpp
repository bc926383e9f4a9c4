#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sardine {
namespace {

// A head's rows lie far apart, often two to a page: the processor does not foresee them.
void prefetch_rows(const uint8_t* rows, size_t row_bytes, int64_t n, int64_t bytes) {
    constexpr int64_t kLine = 64;
    for (int64_t j = 0; j < n; ++j)
        for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(rows + j * row_bytes + b);
}

// Heads [first, first + n) of one token, which share a cached head: softmax block by block, with running
// maxima.
void attend(const AttentionArgs& a, const CpuOps& ops, int64_t token, int64_t first, int64_t n,
            float* weights) {
    const int64_t head_kv = first / (a.n_heads / a.n_heads_kv);
    const int64_t head_bytes = kv_bytes(a.type, a.dim);
    const size_t offset = head_kv * head_bytes;
    const float* q = a.q + (token * a.n_heads + first) * a.dim;
    float* out = a.out + (token * a.n_heads + first) * a.dim;
    std::fill_n(out, n * a.dim, 0.0f);

    constexpr int64_t kMaxHeads = 64;
    float top[kMaxHeads], total[kMaxHeads];
    std::fill_n(top, n, -std::numeric_limits<float>::infinity());
    std::fill_n(total, n, 0.0f);
    const int64_t n_pos = a.positions[token] + 1;
    for (int64_t p = 0; p < n_pos; p += kAttentionBlock) {
        const int64_t m = std::min(kAttentionBlock, n_pos - p);
        prefetch_rows(a.v + p * a.row_bytes + offset, a.row_bytes, m, head_bytes);
        ops.attention_scores(a.type, a.k + p * a.row_bytes + offset, a.row_bytes, m, a.dim, q, n, weights);
        for (int64_t h = 0; h < n; ++h) {
            float* w = weights + h * kAttentionBlock;
            float block_top = top[h];
            for (int64_t j = 0; j < m; ++j) block_top = std::max(block_top, w[j] *= a.scale);
            // Nothing but -inf or NaN so far: keep the weights finite.
            if (!std::isfinite(block_top)) block_top = 0.0f;
            const float shrink = std::exp(top[h] - block_top);
            total[h] = total[h] * shrink + ops.attention_exp(w, m, block_top);
            if (shrink != 1.0f)
                for (int64_t i = 0; i < a.dim; ++i) out[h * a.dim + i] *= shrink;
            top[h] = block_top;
        }
        if (p + kAttentionBlock < n_pos)
            prefetch_rows(a.k + (p + kAttentionBlock) * a.row_bytes + offset, a.row_bytes,
                          std::min(kAttentionBlock, n_pos - p - kAttentionBlock), head_bytes);
        ops.attention_weigh(a.type, a.v + p * a.row_bytes + offset, a.row_bytes, m, a.dim, weights, n, out);
    }
    for (int64_t h = 0; h < n; ++h)
        for (int64_t i = 0; i < a.dim; ++i) out[h * a.dim + i] /= total[h];
}

}  // namespace

void attention(const AttentionArgs& a, const CpuOps& ops, int ith, int nth, float* scratch) {
    // Heads that share cached rows go together, so that a row is read once, unless that would leave threads
    // idle.
    const int64_t shared = a.n_heads / a.n_heads_kv;
    int64_t group = std::min<int64_t>(shared, 64);
    while (group > 1 && (a.n_tokens * a.n_heads / group < nth || shared % group != 0)) --group;
    const int64_t per_token = a.n_heads / group, n = a.n_tokens * per_token;
    // Later tokens see more rows: dealing them out one by one keeps the shares even.
    for (int64_t i = ith; i < n && !a.stop(ith); i += nth)
        attend(a, ops, i / per_token, i % per_token * group, group, scratch);
}

void dequantize_rows(const uint8_t* rows, size_t row_bytes, int64_t n_rows, int64_t n, const CpuOps& ops,
                     int ith, int nth, float* out) {
    for (int64_t r = n_rows * ith / nth; r < n_rows * (ith + 1) / nth; ++r)
        ops.add_values(ValueType::q8_0, rows + r * row_bytes, 0, n, 1.0f, false, out + r * n);
}

}  // namespace sardine
