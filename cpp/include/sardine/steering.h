// What a context changes in the router's choice, in every layer and for every token.
#pragma once

#include <cstdint>
#include <vector>

namespace sardine {

// At most one of the two has values, [n_expert] each; without any the router chooses freely.
struct Steering {
    std::vector<float> weights;  // forced: the experts with a weight act with it, no others; they sum to 1
    std::vector<float> bias;     // added to the router's clamped logits; -infinity: never chosen

    bool operator==(const Steering&) const = default;
    bool empty() const { return weights.empty() && bias.empty(); }
};

// Biases beyond this say no more: clamped logits differ by at most 100.
constexpr float kMaxBias = 100.0f;

// A sum of weights this near to 1 is left alone, so that settings read back are the same ones.
constexpr double kWeightRounding = 1e-6;

// Weights scaled to the sum 1, no-op biases left out. Throws InvalidArgument for lists that are not n_experts
// long, both at once, weights that are negative, not finite or all 0, and biases that are out of range.
Steering checked_steering(Steering s, int64_t n_experts);

}  // namespace sardine
