#include "sardine/sampler.h"

#include <cmath>
#include <string>

#include "sardine/error.h"

namespace sardine {
namespace {

void check(const char* name, float value, float low, float high) {
    if (!(value >= low && value <= high))
        throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                              std::to_string(low) + " to " + std::to_string(high));
}

}  // namespace

Sampler::Sampler(const SamplerOptions& o)
    : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
    check("temperature", o.temperature, 0.0f, 100.0f);
    check("top_p", o.top_p, 0.0f, 1.0f);
    check("min_p", o.min_p, 0.0f, 1.0f);

    // Below this, logits divided by it overflow; the choice is greedy to many digits anyway.
    if (o.temperature < 1e-5f) {
        llama_sampler_chain_add(chain_.get(), llama_sampler_init_greedy());
        return;
    }
    if (o.top_k > 0) llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_k(o.top_k));
    if (o.top_p < 1.0f) llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_p(o.top_p, 1));
    if (o.min_p > 0.0f) llama_sampler_chain_add(chain_.get(), llama_sampler_init_min_p(o.min_p, 1));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_temp(o.temperature));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_dist(o.seed));
}

int32_t Sampler::sample(std::span<const float> logits) {
    if (logits.empty()) throw InvalidArgument("there are no logits to sample from: evaluate a token first");
    candidates_.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
        if (!std::isfinite(logits[i]))
            throw Error("the model gave a logit that is not finite: its weights are damaged");
        candidates_[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
    }
    llama_token_data_array array{candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    if (array.selected < 0 || array.selected >= static_cast<int64_t>(array.size))
        throw Error("the sampler chose no token");
    return array.data[array.selected].id;
}

}  // namespace sardine
