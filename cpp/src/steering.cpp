#include "sardine/steering.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "sardine/error.h"

namespace sardine {

Steering checked_steering(Steering s, int64_t n_experts) {
    if (!s.weights.empty() && !s.bias.empty())
        throw InvalidArgument(
            "experts are forced and biased at once: a bias does nothing where the router is not asked");
    for (const std::vector<float>* list : {&s.weights, &s.bias})
        if (!list->empty() && static_cast<int64_t>(list->size()) != n_experts)
            throw InvalidArgument("there are settings for " + std::to_string(list->size()) +
                                  " experts, and the model has " + std::to_string(n_experts));
    double sum = 0.0;
    for (const float w : s.weights) {
        if (!std::isfinite(w) || w < 0.0f)
            throw InvalidArgument("an expert's weight is " + std::to_string(w) +
                                  ", expected a finite number of at least 0");
        sum += w;
    }
    if (!s.weights.empty() && sum == 0.0)
        throw InvalidArgument("every forced expert's weight is 0: give one more than that");
    if (std::abs(sum - 1.0) > kWeightRounding)
        for (float& w : s.weights) w = static_cast<float>(w / sum);
    for (const float b : s.bias)
        if (b != -INFINITY && !(std::abs(b) <= kMaxBias))
            throw InvalidArgument("an expert's bias is " + std::to_string(b) +
                                  ", expected -100 to 100, or -infinity");
    if (std::ranges::all_of(s.bias, [](float b) { return b == 0.0f; })) s.bias.clear();
    return s;
}

}  // namespace sardine
