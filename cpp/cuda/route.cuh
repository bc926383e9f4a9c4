// The router on the device: logits in f32 (a matrix product of ggml-cuda may round to TF32, which the format
// forbids), clamp, bias, top-k, softmax, as route_token() does; and the gains.
#pragma once

#include "grid.h"
#include "values.cuh"
#include "views.h"

namespace sardine::device {

constexpr int kRouteThreads = 1024;
constexpr int kMaxExperts = 256;
constexpr size_t kRouteBytes = sizeof(float) * (2 * kMaxExperts + kRouteThreads / grid::kWarp);

// part `part` of `n_parts` of router[expert] . x, added up over the warp
SARDINE_DEVICE float router_dot(const RouteArgs& a, const float* x, int expert, int part, int n_parts) {
    const int lane = grid::thread() % grid::kWarp;
    const float* w = a.router + static_cast<int64_t>(expert) * a.n_cols;
    float sum = 0.0f;
    SARDINE_UNROLL
    for (int i = part * grid::kWarp + lane; i < a.n_cols; i += n_parts * grid::kWarp) sum += w[i] * x[i];
    for (int step = grid::kWarp / 2; step > 0; step /= 2) sum += grid::shuffle_xor(sum, step);
    return sum;
}

// The best of scores[n]: the lowest index among equals; -infinity is never chosen.
SARDINE_DEVICE int best_expert(const float* scores, int n) {
    const int lane = grid::thread() % grid::kWarp;
    int best = -1;
    float score = 0.0f;
    for (int e = lane; e < n; e += grid::kWarp)
        if (scores[e] > -INFINITY && (best < 0 || scores[e] > score)) {
            best = e;
            score = scores[e];
        }
    for (int step = grid::kWarp / 2; step > 0; step /= 2) {
        const int other = grid::shuffle_xor(best, step);
        const float theirs = grid::shuffle_xor(score, step);
        if (other >= 0 && (best < 0 || theirs > score || (theirs == score && other < best))) {
            best = other;
            score = theirs;
        }
    }
    return best;
}

// One block a token.
SARDINE_KERNEL void SARDINE_BOUNDS(kRouteThreads) route(RouteArgs a) {
    constexpr float kClamp = 50.0f;
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    const int n_warps = grid::n_threads() / grid::kWarp, token = grid::block_x();
    auto* scores = reinterpret_cast<float*>(grid::shared_memory());  // [n_experts]
    float* chosen = scores + kMaxExperts;                            // [k]: the scores of the route
    float* parts = chosen + kMaxExperts;                             // [n_warps]
    const float* x = a.x + token * a.x_stride;
    float* out = a.routes + static_cast<int64_t>(token) * 2 * a.k;

    // Few experts share the warps evenly, many take turns.
    const int n_parts = most(1, n_warps / a.n_experts), at_once = n_warps / n_parts;
    for (int first = 0; first < a.n_experts; first += at_once) {
        const int expert = first + warp / n_parts;
        const bool busy = warp < at_once * n_parts && expert < a.n_experts;
        const float sum = busy ? router_dot(a, x, expert, warp % n_parts, n_parts) : 0.0f;
        if (lane == 0) parts[warp] = sum;
        grid::sync_block();
        if (busy && warp % n_parts == 0 && lane == 0) {
            float l = 0.0f;
            for (int i = 0; i < n_parts; ++i) l += parts[warp + i];
            if (a.logits) a.logits[static_cast<int64_t>(token) * a.n_experts + expert] = l;
            l = l > kClamp ? kClamp : l >= -kClamp ? l : -kClamp;  // NaN too
            scores[expert] = a.bias ? l + a.bias[expert] : l;
        }
        grid::sync_block();
    }
    if (warp > 0) return;
    if (!a.forced) {
        for (int j = 0; j < a.k; ++j) {
            const int e = best_expert(scores, a.n_experts);
            if (lane == 0) {
                out[a.k + j] = static_cast<float>(e);
                chosen[j] = scores[e];
                scores[e] = -INFINITY;
            }
            grid::sync_warp();
        }
    }
    if (lane > 0) return;
    float sum = 0.0f, gain = 1.0f;
    const float top = chosen[0];
    for (int j = 0; j < a.k && !a.forced; ++j) {
        chosen[j] = expf(chosen[j] - top);
        sum += chosen[j];
    }
    for (int j = 0; j < a.k; ++j) {
        if (a.forced) out[a.k + j] = a.forced[a.k + j];
        out[j] = a.forced ? a.forced[j] : chosen[j] / sum;
        if (a.gain) gain += out[j] * a.mean[static_cast<int>(out[a.k + j])];
    }
    if (a.gain) a.gain[token] = gain;
}

}  // namespace sardine::device
