#include "routing.h"

#include <algorithm>
#include <cmath>

namespace sardine {

void route_token(const float* logits, int64_t n_experts, int64_t k, float* out) {
    constexpr float kClamp = 50.0f;
    constexpr int64_t kMaxExperts = 256;
    bool taken[kMaxExperts] = {};
    float top = 0.0f, sum = 0.0f;
    for (int64_t j = 0; j < k; ++j) {
        int64_t best = -1;
        float best_logit = 0.0f;
        for (int64_t e = 0; e < n_experts; ++e) {
            if (taken[e]) continue;
            const float l = std::isnan(logits[e]) ? -kClamp : std::clamp(logits[e], -kClamp, kClamp);
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

}  // namespace sardine
