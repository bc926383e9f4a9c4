#include "routing.h"

#include <algorithm>
#include <cmath>

#include "delta_pack.h"

namespace sardine {

void route_token(const float* logits, int64_t n_experts, int64_t k, float* out, const float* bias) {
    constexpr float kClamp = 50.0f;
    bool taken[kMaxExperts] = {};
    float top = 0.0f, sum = 0.0f;
    for (int64_t j = 0; j < k; ++j) {
        int64_t best = -1;
        float best_logit = 0.0f;
        for (int64_t e = 0; e < n_experts; ++e) {
            if (taken[e] || (bias && bias[e] == -INFINITY)) continue;
            const float clamped = std::isnan(logits[e]) ? -kClamp : std::clamp(logits[e], -kClamp, kClamp);
            const float l = bias ? clamped + bias[e] : clamped;
            if (best < 0 || l > best_logit) {
                best = e;
                best_logit = l;
            }
        }
        taken[best] = true;
        if (j == 0) top = best_logit;
        out[j] = std::exp(best_logit - top);
        out[k + j] = static_cast<float>(best);
        sum += out[j];
    }
    for (int64_t j = 0; j < k; ++j) out[j] /= sum;
}

void route_token(const float* logits, int64_t n_experts, int64_t k, float* out, const Steering& steering) {
    if (steering.weights.empty()) {
        route_token(logits, n_experts, k, out, steering.bias.empty() ? nullptr : steering.bias.data());
        return;
    }
    int64_t n = 0;
    for (int64_t e = 0; e < n_experts; ++e) {
        const float w = steering.weights[e];
        if (w == 0.0f) continue;
        int64_t j = n++;  // insertion keeps the largest first, and the lower index among equals
        for (; j > 0 && out[j - 1] < w; --j) {
            out[j] = out[j - 1];
            out[k + j] = out[k + j - 1];
        }
        out[j] = w;
        out[k + j] = static_cast<float>(e);
    }
}

int64_t routed(const Steering& s, int64_t top_k) {
    if (!s.weights.empty())
        return std::count_if(s.weights.begin(), s.weights.end(), [](float w) { return w > 0.0f; });
    return std::min<int64_t>(top_k, s.bias.empty() ? top_k
                                                   : std::count_if(s.bias.begin(), s.bias.end(),
                                                                   [](float b) { return b != -INFINITY; }));
}

}  // namespace sardine
