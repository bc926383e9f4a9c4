#include "tokenizer.h"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <unordered_set>

#include "capture_log.h"
#include "system_memory.h"

namespace sardine {
namespace {

constexpr size_t kLoadingStack = 8 << 20;  // what a main thread has

void check_array(const GgufFile& f, const std::string& key, GgufType elem, uint64_t n) {
    const GgufValue* v = f.find(key);
    if (!v) return;
    if (v->type != GgufType::array || v->elem != elem)
        f.fail(key, "key '" + key + "' must be an array of " + gguf_type_name(elem));
    if (v->count != n)
        f.fail(key, "key '" + key + "' has " + std::to_string(v->count) + " entries, expected " +
                        std::to_string(n));
}

void check_vocabulary(const GgufFile& f, const std::string& model, int64_t n_vocab) {
    const std::string list_key = "tokenizer.ggml.tokens";
    const auto tokens = f.string_array(list_key);
    if (static_cast<int64_t>(tokens.size()) != n_vocab)
        f.fail(list_key, "there are " + std::to_string(tokens.size()) + " tokens for " +
                             std::to_string(n_vocab) + " rows of token_embd.weight");
    std::unordered_set<std::string> seen;
    seen.reserve(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
        const std::string_view t = tokens[i];
        if (t.find('\0') != t.npos ||
            !seen.insert(t.empty() ? "[EMPTY_" + std::to_string(i) + "]" : std::string(t)).second)
            f.fail(list_key, "token " + std::to_string(i) + " stands twice or contains a NUL byte");
    }
    check_array(f, "tokenizer.ggml.token_type", GgufType::i32, tokens.size());
    // llama.cpp's converter writes integers for tekken.json; libllama takes both.
    const GgufValue* scores = f.find("tokenizer.ggml.scores");
    const bool integers = scores && scores->type == GgufType::array && scores->elem == GgufType::i32;
    check_array(f, "tokenizer.ggml.scores", integers ? GgufType::i32 : GgufType::f32, tokens.size());
    if (model == "gpt2")
        for (const std::string_view merge : f.string_array("tokenizer.ggml.merges"))
            if (merge.find(' ', 1) == merge.npos)
                f.fail("tokenizer.ggml.merges", "a merge is not two tokens with a space between");
    if (model ==
        "llama")  // libllama looks the bytes of unknown text up without asking whether they are there
        for (int byte = 0; byte < 256; ++byte) {
            char name[8];
            std::snprintf(name, sizeof name, "<0x%02X>", byte);
            if (!seen.contains(name))
                f.fail(list_key,
                       "the SentencePiece vocabulary has no byte token '" + std::string(name) + "'");
        }
    for (const auto& [key, value] : f.values())
        if (key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id") && f.u32(key) >= tokens.size())
            f.fail(key, "key '" + key + "' is " + std::to_string(f.u32(key)) + ", but there are " +
                            std::to_string(tokens.size()) + " tokens");
}

}  // namespace

Tokenizer::Tokenizer(const GgufFile& f, int64_t n_vocab, const StopPoint& stop) : n_vocab_(n_vocab) {
    const std::string model_key = "tokenizer.ggml.model";
    const std::string model = f.has(model_key) ? std::string(f.string(model_key)) : "none";
    if (model == "none" || model == "no_vocab") return;
    if (model != "gpt2" && model != "llama")
        f.fail(model_key, "tokenizer model '" + model.substr(0, 40) +
                              "' is not supported, expected gpt2, llama or none");
    check_vocabulary(f, model, n_vocab);
    const std::string pre_key = "tokenizer.ggml.pre";
    if (model == "gpt2")
        splitter_ = f.has(pre_key) && f.string(pre_key) == "tekken" ? Splitter::tekken : Splitter::other;

    struct Loading {  // owned by the thread too, which may outlast this call
        std::string path, why;
        std::shared_ptr<llama_model> model;
    };
    const auto loading = std::make_shared<Loading>(Loading{f.path(), {}, {}});
    run_with_stack(
        kLoadingStack,
        [loading] {
            ggml_backend_dev_t no_devices[] = {nullptr};
            llama_model_params params = llama_model_default_params();
            params.devices = no_devices;
            params.vocab_only = true;
            loading->why = capture_errors([&] {
                loading->model.reset(llama_model_load_from_file(loading->path.c_str(), params),
                                     llama_model_free);
            });
        },
        stop);
    model_ = loading->model;
    std::string why = loading->why;
    if (!model_) {
        std::ranges::replace(why, '\n', ' ');
        f.fail("tokenizer", "libllama cannot read the tokenizer: " + why);
    }
    vocab_ = llama_model_get_vocab(model_.get());
    if (llama_vocab_n_tokens(vocab_) != n_vocab)
        f.fail("tokenizer.ggml.tokens",
               "libllama sees " + std::to_string(llama_vocab_n_tokens(vocab_)) + " tokens");
}

void Tokenizer::require() const {
    if (!model_)
        throw InvalidArgument("this file has no tokenizer (tokenizer.ggml.model is 'none'): use token ids");
}

void Tokenizer::check_token(int32_t token) const {
    if (token < 0 || token >= n_vocab_)
        throw InvalidArgument("token id " + std::to_string(token) + " is outside the vocabulary of " +
                              std::to_string(n_vocab_));
}

namespace {
// libllama's lookups throw on vocabularies that contradict themselves.
template <typename F>
int32_t guarded(const char* what, const F& f) {
    try {
        return f();
    } catch (const std::exception& e) {
        throw InvalidArgument(std::string("libllama cannot ") + what +
                              " with this file's vocabulary: " + e.what());
    }
}
}  // namespace

namespace {

// libllama splits texts with std::regex, which recurses for every character of a match: 320 bytes of stack
// each, measured with GCC 12's. A stack's pages take memory only once they are used.
constexpr size_t kStackPerCharacter = 1024, kStackUsedPerCharacter = 400, kStackBase = 256 << 10;
constexpr size_t kMaxMatch = 1 << 22;
constexpr size_t kShort = 16 << 10;    // bytes of text that are done in a moment
constexpr size_t kMemoryPerByte = 64;  // of text, while libllama splits it

// The most characters that one match of tekken's expressions may have: visible characters, then spaces or
// slashes. Characters beyond ASCII may be of any kind.
size_t longest_match(std::string_view text) {
    size_t spaces = 0, others = 0, longest = 0;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte & 0xC0) == 0x80) continue;
        const bool any = byte >= 0x80 || byte == '/', space = byte <= ' ';
        spaces = space || any ? spaces + 1 : 0;
        others = !space || any ? others + 1 : 0;
        longest = std::max({longest, spaces, others});
    }
    return 2 * longest + 1;
}

size_t count_characters(std::string_view text) {
    return static_cast<size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

struct Work {
    std::shared_ptr<llama_model> model;  // lives as long as the work
    std::string text;
    bool special;
    std::vector<int32_t> out;
};

void run_work(Work& w) {
    const llama_vocab* vocab = llama_model_get_vocab(w.model.get());
    const auto size = static_cast<int32_t>(w.text.size());
    w.out.resize(w.text.size() + 8);
    // BOS is ours to add: libllama aborts when a model asks for one that it does not define.
    auto run = [&] {
        return guarded("tokenize", [&] {
            return llama_tokenize(vocab, w.text.data(), size, w.out.data(),
                                  static_cast<int32_t>(w.out.size()), false, w.special);
        });
    };
    int32_t n = run();
    if (n < 0 && n != INT32_MIN) {
        w.out.resize(-n);
        n = run();
    }
    if (n < 0) throw InvalidArgument("the text could not be tokenized");
    w.out.resize(n);
}

}  // namespace

std::vector<int32_t> Tokenizer::tokenize(std::string_view text, bool add_bos, bool special,
                                         const StopPoint& stop) const {
    require();
    if (text.size() > INT_MAX / 2) throw InvalidArgument("the text is longer than 1 GiB");
    const size_t match = splitter_ == Splitter::none     ? 0
                         : splitter_ == Splitter::tekken ? longest_match(text)
                                                         : count_characters(text);
    if (match > 2 * kMaxMatch)
        throw InvalidArgument("the text has more than " + std::to_string(kMaxMatch) +
                              " characters in a row that libllama may take as one word: break it up with "
                              "spaces, or give it in parts");
    const auto work = std::make_shared<Work>(Work{model_, std::string(text), special, {}});
    const size_t stack = kStackBase + match * kStackPerCharacter;
    if (text.size() <= kShort && stack_left() > stack) {
        run_work(*work);
    } else {
        const uint64_t need = text.size() * kMemoryPerByte + match * kStackUsedPerCharacter;
        const uint64_t free = available_memory();
        if (need > free)
            throw InsufficientMemory("to tokenize a text of " + std::to_string(text.size()) +
                                     " bytes takes up to " + std::to_string(need) + " bytes, but " +
                                     std::to_string(free) + " are available: give it in parts");
        run_with_stack(stack, [work] { run_work(*work); }, stop);
    }
    std::vector<int32_t> out = std::move(work->out);
    if (add_bos && this->add_bos() && bos() >= 0) out.insert(out.begin(), bos());
    return out;
}

const std::vector<std::string>& Tokenizer::pieces() const {
    std::call_once(pieces_made_, [this] {
        std::vector<std::string> made;
        made.reserve(model_ ? n_vocab_ : 0);
        for (int32_t t = 0; model_ && t < n_vocab_; ++t) made.push_back(piece(t, true));
        pieces_ = std::move(made);
    });
    return pieces_;
}

size_t Tokenizer::longest_piece() const {
    size_t longest = 1;
    for (const std::string& p : pieces()) longest = std::max(longest, p.size());
    return longest;
}

std::string Tokenizer::piece(int32_t token, bool special) const {
    require();
    check_token(token);
    std::string out(64, '\0');
    auto run = [&] {
        return guarded("detokenize", [&] {
            return llama_token_to_piece(vocab_, token, out.data(), static_cast<int32_t>(out.size()), 0,
                                        special);
        });
    };
    int32_t n = run();
    if (n < 0) {
        out.resize(-n);
        n = run();
    }
    out.resize(n < 0 ? 0 : n);
    return out;
}

int32_t Tokenizer::bos() const {
    return model_ ? llama_vocab_bos(vocab_) : -1;
}
int32_t Tokenizer::eos() const {
    return model_ ? llama_vocab_eos(vocab_) : -1;
}
bool Tokenizer::add_bos() const {
    return model_ && llama_vocab_get_add_bos(vocab_);
}

bool Tokenizer::is_end(int32_t token) const {
    check_token(token);
    return model_ && llama_vocab_is_eog(vocab_, token);
}

bool Tokenizer::is_control(int32_t token) const {
    check_token(token);
    return model_ && llama_vocab_is_control(vocab_, token);
}

std::vector<int32_t> Tokenizer::control_tokens() const {
    std::vector<int32_t> out;
    for (int32_t t = 0; model_ && t < n_vocab_; ++t)
        if (llama_vocab_get_attr(vocab_, t) & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED))
            out.push_back(t);
    return out;
}

std::string Tokenizer::text(int32_t token) const {
    require();
    check_token(token);
    return llama_vocab_get_text(vocab_, token);
}

}  // namespace sardine
