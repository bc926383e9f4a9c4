#include "sardine/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>

#include "grammar_check.h"
#include "grammar_matcher.h"
#include "grammar_reader.h"
#include "sardine/error.h"

namespace sardine {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

void check(const char* name, float value, float low, float high) {
    if (!(value >= low && value <= high))
        throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                              std::to_string(low) + " to " + std::to_string(high));
}

void check(const SamplerOptions& o, int64_t n_vocab) {
    check("temperature", o.temperature, 0.0f, 100.0f);
    check("top_p", o.top_p, 0.0f, 1.0f);
    check("min_p", o.min_p, 0.0f, 1.0f);
    check("typical_p", o.typical_p, 0.0f, 1.0f);
    check("xtc_probability", o.xtc_probability, 0.0f, 1.0f);
    check("xtc_threshold", o.xtc_threshold, 0.0f, 1.0f);
    check("repeat_penalty", o.repeat_penalty, 0.01f, 100.0f);
    check("presence_penalty", o.presence_penalty, -100.0f, 100.0f);
    check("frequency_penalty", o.frequency_penalty, -100.0f, 100.0f);
    check("repeat_last_n", static_cast<float>(o.repeat_last_n), 0.0f, 1e8f);
    check("mirostat_mode", static_cast<float>(o.mirostat_mode), 0.0f, 2.0f);
    check("mirostat_tau", o.mirostat_tau, 0.0f, 100.0f);
    check("mirostat_eta", o.mirostat_eta, 0.0f, 100.0f);
    for (const auto& [token, bias] : o.logit_bias) {
        if (token < 0 || token >= n_vocab)
            throw InvalidArgument("logit_bias names token " + std::to_string(token) +
                                  ", which is outside the vocabulary of " + std::to_string(n_vocab));
        if (!(std::isfinite(bias) || bias == kNever))
            throw InvalidArgument("logit_bias of token " + std::to_string(token) +
                                  " is not a number: use finite ones, or -inf for never");
    }
}

// Drops candidates whose probability is 0 in float32: libllama's typical sampler takes its logarithm. It
// would not keep them either.
void drop_impossible(llama_sampler*, llama_token_data_array* a) {
    float top = kNever;
    for (size_t i = 0; i < a->size; ++i) top = std::max(top, a->data[i].logit);
    llama_token_data* end =
        std::remove_if(a->data, a->data + a->size, [top](const auto& c) { return c.logit < top - 80.0f; });
    a->size = static_cast<size_t>(end - a->data);
}

llama_sampler* init_drop_impossible() {
    static llama_sampler_i interface = [] {
        llama_sampler_i i{};
        i.name = [](const llama_sampler*) { return "drop-impossible"; };
        i.apply = drop_impossible;
        return i;
    }();
    return llama_sampler_init(&interface, nullptr);
}

}  // namespace

Sampler::Sampler(std::shared_ptr<const Model> model, const SamplerOptions& o)
    : Sampler(model, model->hparams().n_vocab, o) {}
Sampler::Sampler(int64_t n_vocab, const SamplerOptions& o) : Sampler(nullptr, n_vocab, o) {}

Sampler::Sampler(std::shared_ptr<const Model> model, int64_t n_vocab, const SamplerOptions& o)
    : model_(std::move(model)),
      n_vocab_(n_vocab),
      repeat_last_n_(o.repeat_last_n),
      bias_(o.logit_bias),
      chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
    if (n_vocab < 1 || n_vocab > std::numeric_limits<int32_t>::max())
        throw InvalidArgument("n_vocab is " + std::to_string(n_vocab) + ", expected at least 1");
    check(o, n_vocab);
    const int32_t n = static_cast<int32_t>(n_vocab);
    if (model_ && model_->tokenizer().available()) {
        int32_t count = 0;
        const llama_token* suppressed = llama_vocab_get_suppress_tokens(model_->tokenizer().vocab(), &count);
        for (int32_t i = 0; i < count; ++i)
            if (suppressed[i] >= 0 && suppressed[i] < n) bias_.push_back({suppressed[i], kNever});
    }
    if (!o.grammar.empty()) add_grammar(o.grammar);
    add_ordered(o);
}

void Sampler::add_ordered(const SamplerOptions& o) {
    const auto add = [this](llama_sampler* s) { llama_sampler_chain_add(chain_.get(), s); };
    const int32_t n = static_cast<int32_t>(n_vocab_);
    const bool penalties =
        o.repeat_last_n > 0 &&
        (o.repeat_penalty != 1.0f || o.presence_penalty != 0.0f || o.frequency_penalty != 0.0f) &&
        std::ranges::find(o.samplers, "penalties") != o.samplers.end();
    const auto add_penalties = [&] {
        if (penalties)
            add(llama_sampler_init_penalties(n, o.repeat_last_n, o.repeat_penalty, o.frequency_penalty,
                                             o.presence_penalty));
    };
    const std::map<std::string, std::function<void()>> adders{
        {"penalties", add_penalties},
        {"top_k",
         [&] {
             if (o.top_k > 0) add(llama_sampler_init_top_k(o.top_k));
         }},
        {"typ_p",
         [&] {
             if (o.typical_p >= 1.0f) return;
             add(init_drop_impossible());
             add(llama_sampler_init_typical(o.typical_p, 1));
         }},
        {"top_p",
         [&] {
             if (o.top_p < 1.0f) add(llama_sampler_init_top_p(o.top_p, 1));
         }},
        {"min_p",
         [&] {
             if (o.min_p > 0.0f) add(llama_sampler_init_min_p(o.min_p, 1));
         }},
        {"xtc",
         [&] {
             if (o.xtc_probability > 0.0f)
                 add(llama_sampler_init_xtc(o.xtc_probability, o.xtc_threshold, 1, o.seed));
         }},
        {"temperature", [&] { add(llama_sampler_init_temp(o.temperature)); }},
    };
    for (const std::string& name : o.samplers)
        if (!adders.contains(name)) throw InvalidArgument("samplers has no '" + name.substr(0, 60) + "'");

    if (!penalties) repeat_last_n_ = 0;
    const bool greedy = o.temperature < 1e-5f;  // logits divided by less would overflow
    if (greedy || o.mirostat_mode != 0) {
        // llama.cpp leaves the penalties out with mirostat; an option that does nothing would be a trap.
        add_penalties();
        if (greedy) return add(llama_sampler_init_greedy());
        add(llama_sampler_init_temp(o.temperature));
        return add(o.mirostat_mode == 1
                       ? llama_sampler_init_mirostat(n, o.seed, o.mirostat_tau, o.mirostat_eta, 100)
                       : llama_sampler_init_mirostat_v2(o.seed, o.mirostat_tau, o.mirostat_eta));
    }
    for (const std::string& name : o.samplers) adders.at(name)();
    add(llama_sampler_init_dist(o.seed));
}

void Sampler::add_grammar(const std::string& text) {
    if (!model_ || !model_->tokenizer().available())
        throw InvalidArgument("a grammar needs a model with a tokenizer");
    const Tokenizer& tokenizer = model_->tokenizer();
    const Grammar grammar = read_grammar(text, tokenizer);
    check_recursion(grammar, text);
    grammar_ = std::make_unique<GrammarMatcher>(grammar);
    kinds_.resize(n_vocab_, TokenKind::plain);
    for (int32_t t = 0; t < n_vocab_; ++t)
        if (tokenizer.is_end(t))
            kinds_[t] = TokenKind::end;
        else if (!grammar.names_tokens && tokenizer.is_control(t))
            kinds_[t] = TokenKind::forbidden;
}

Sampler::~Sampler() = default;

void Sampler::accept_prompt(std::span<const int32_t> tokens) {
    const size_t n = std::min<size_t>(tokens.size(), static_cast<size_t>(repeat_last_n_));
    for (const int32_t t : tokens.last(n)) llama_sampler_accept(chain_.get(), t);
}

int32_t Sampler::choose(std::span<const float> logits, bool constrained, const StopPoint& stop) {
    candidates_.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) {
        if (!std::isfinite(logits[i]))
            throw Error("the model gave a logit that is not finite: its weights are damaged");
        candidates_[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
    }
    for (const auto& [token, bias] : bias_) candidates_[token].logit += bias;
    if (constrained)
        for (llama_token_data& c : candidates_)
            if (c.logit != kNever && !allowed_by_grammar(c.id, stop)) c.logit = kNever;
    if (constrained || !bias_.empty())  // samplers further on take logarithms of probabilities
        std::erase_if(candidates_, [](const llama_token_data& c) { return !std::isfinite(c.logit); });
    if (candidates_.empty())
        throw Error(constrained ? "no token of the vocabulary continues the text by the grammar"
                                : "logit_bias leaves no token");
    llama_token_data_array array{candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    if (array.selected < 0 || array.selected >= static_cast<int64_t>(array.size))
        throw Error("the sampler chose no token");
    return array.data[array.selected].id;
}

bool Sampler::allows(int32_t token) {
    if (token < 0 || token >= n_vocab_)
        throw InvalidArgument("token id " + std::to_string(token) + " is outside the vocabulary of " +
                              std::to_string(n_vocab_));
    return !grammar_ || allowed_by_grammar(token, {});
}

bool Sampler::allowed_by_grammar(int32_t token, const StopPoint& stop) {
    if (kinds_[token] == TokenKind::forbidden) return false;
    if (kinds_[token] == TokenKind::end) return grammar_->may_end();
    return grammar_->allows(token, model_->tokenizer().pieces()[token], stop);
}

int32_t Sampler::sample(std::span<const float> logits, const StopPoint& stop) {
    if (logits.empty()) throw InvalidArgument("there are no logits to sample from: evaluate a token first");
    if (static_cast<int64_t>(logits.size()) != n_vocab_)
        throw InvalidArgument("there are " + std::to_string(logits.size()) + " logits, expected " +
                              std::to_string(n_vocab_));
    int32_t token = choose(logits, false, stop);
    // As llama.cpp: the whole vocabulary is held against the grammar only when the choice is.
    if (grammar_) {
        if (!allowed_by_grammar(token, stop)) token = choose(logits, true, stop);
        if (kinds_[token] != TokenKind::end &&
            !grammar_->accept(token, model_->tokenizer().pieces()[token], stop))
            throw Error("the text cannot go on by the grammar");
    }
    llama_sampler_accept(chain_.get(), token);
    return token;
}

}  // namespace sardine
