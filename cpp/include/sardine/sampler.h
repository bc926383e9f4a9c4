// Token sampling through libllama's samplers.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace sardine {

struct SamplerOptions {
    float temperature = 0.8f;  // 0: greedy
    int32_t top_k = 40;        // 0 or less: off
    float top_p = 0.95f;       // 1: off
    float min_p = 0.05f;       // 0: off
    uint32_t seed = 0;
};

class Sampler {
 public:
    explicit Sampler(const SamplerOptions& options);  // throws InvalidArgument

    // logits [n_vocab] -> token id; the same seed and logits give the same tokens.
    int32_t sample(std::span<const float> logits);

 private:
    struct Free {
        void operator()(llama_sampler* s) const { llama_sampler_free(s); }
    };
    std::unique_ptr<llama_sampler, Free> chain_;
    std::vector<llama_token_data> candidates_;
};

}  // namespace sardine
