// The router's choice: the k experts of a token and their weights (docs/format.md, "What is computed").
#pragma once

#include <cstddef>
#include <cstdint>

#include "sardine/steering.h"

namespace sardine {

// Routes of some tokens, one row of 2k floats each: k weights that sum to 1, largest first, then k expert
// numbers (small integers, exact in f32). Non-owning.
struct Routes {
    const float* data = nullptr;
    int64_t k = 0;
    int64_t stride = 0;  // floats between tokens

    float weight(int64_t token, int64_t j) const { return data[token * stride + j]; }
    int32_t expert(int64_t token, int64_t j) const {
        return static_cast<int32_t>(data[token * stride + k + j]);
    }
};

// logits [n_experts] -> out [2k]. Logits are clamped to [-50, 50]; among equals the lower index comes first.
// A NaN logit counts as the lowest. bias [n_experts], if not null, is added to the clamped logits; those of
// -infinity are never chosen, and k is at most the number of the others.
void route_token(const float* logits, int64_t n_experts, int64_t k, float* out, const float* bias = nullptr);

// The same for a steered router: forced experts and weights, or the biased choice. k is routed(steering, ..).
void route_token(const float* logits, int64_t n_experts, int64_t k, float* out, const Steering& steering);

// Experts of a token under a steering: top_k, or what is forced, or what is not muted if that is less.
int64_t routed(const Steering& steering, int64_t top_k);

}  // namespace sardine
