// Token sampling through libllama's samplers, and a grammar through our own matcher.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sardine/model.h"
#include "sardine/progress.h"

namespace sardine {

// Names and defaults are llama.cpp's.
struct SamplerOptions {
    float temperature = 0.8f;      // 0: greedy
    int32_t top_k = 40;            // 0 or less: off
    float top_p = 0.95f;           // 1: off
    float min_p = 0.05f;           // 0: off
    float typical_p = 1.0f;        // 1: off
    float xtc_probability = 0.0f;  // 0: off
    float xtc_threshold = 0.1f;    // above 0.5: off
    float repeat_penalty = 1.0f;   // 1: off
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    int32_t repeat_last_n = 64;  // tokens that the penalties look back on; 0: off
    int32_t mirostat_mode = 0;   // 0: off, 1, 2; takes the place of the samplers from top_k to xtc
    float mirostat_tau = 5.0f;
    float mirostat_eta = 0.1f;
    uint32_t seed = 0;
    // llama.cpp's names, in the order in which they are applied; those left out are not.
    std::vector<std::string> samplers = {"penalties", "top_k", "typ_p",      "top_p",
                                         "min_p",     "xtc",   "temperature"};
    std::vector<llama_logit_bias> logit_bias;  // finite, or -infinity: never
    std::string grammar;                       // GBNF with a rule root; "": none
};

class GrammarMatcher;

class Sampler {
 public:
    // For a model's logits. Throws InvalidArgument.
    Sampler(std::shared_ptr<const Model> model, const SamplerOptions& options);
    // For any logits [n_vocab]; a grammar needs a model.
    Sampler(int64_t n_vocab, const SamplerOptions& options);
    ~Sampler();

    bool has_grammar() const { return grammar_ != nullptr; }
    // Whether the grammar lets a token come next; true without one. Throws InvalidArgument.
    bool allows(int32_t token);

    // Takes tokens as the text so far, for the penalties.
    void accept_prompt(std::span<const int32_t> tokens);

    // logits [n_vocab] -> token id, accepted as the text's next token. The same seed and logits give the same
    // tokens. A grammar may take long: `stop` is asked meanwhile, and when it throws, no token is
    // accepted. Throws
    // Error if grammar and biases leave no token, GrammarTooComplex.
    int32_t sample(std::span<const float> logits, const StopPoint& stop = {});

 private:
    Sampler(std::shared_ptr<const Model> model, int64_t n_vocab, const SamplerOptions& options);

    struct Free {
        void operator()(llama_sampler* s) const { llama_sampler_free(s); }
    };
    using Owned = std::unique_ptr<llama_sampler, Free>;

    void add_grammar(const std::string& text);
    void add_ordered(const SamplerOptions& o);
    int32_t choose(std::span<const float> logits, bool constrained, const StopPoint& stop);
    bool allowed_by_grammar(int32_t token, const StopPoint& stop);

    std::shared_ptr<const Model> model_;
    int64_t n_vocab_;
    int32_t repeat_last_n_;
    std::vector<llama_logit_bias> bias_;
    Owned chain_;
    std::unique_ptr<GrammarMatcher> grammar_;
    // With the grammar, of each token: control tokens, whose names a rule could spell, are forbidden unless
    // they end the text.
    enum class TokenKind : uint8_t { plain, forbidden, end };
    std::vector<TokenKind> kinds_;
    std::vector<llama_token_data> candidates_;
};

}  // namespace sardine
