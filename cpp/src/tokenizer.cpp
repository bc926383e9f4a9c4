#include "tokenizer.h"

#include <climits>
#include <cstdio>
#include <mutex>
#include <thread>
#include <unordered_set>

#include "log.h"

namespace sardine {
namespace {

// While it lives, libllama's errors go to `text` and the rest to the log sink. The callback is global to the
// process, so it is put back.
class CaptureLog {
 public:
    CaptureLog() : lock_(mutex()) {
        llama_log_get(&callback_, &user_data_);
        llama_log_set(
            [](ggml_log_level level, const char* line, void* self) {
                auto* log = static_cast<CaptureLog*>(self);
                if (level == GGML_LOG_LEVEL_ERROR && std::this_thread::get_id() == log->thread_)
                    log->text += line;
                else if (const LogSink sink = log_sink)
                    sink(level, line);
            },
            this);
    }
    ~CaptureLog() { llama_log_set(callback_, user_data_); }
    std::string text;

 private:
    static std::mutex& mutex() {
        static std::mutex m;
        return m;
    }
    std::lock_guard<std::mutex> lock_;
    std::thread::id thread_ = std::this_thread::get_id();  // another thread's messages are not ours
    ggml_log_callback callback_ = nullptr;
    void* user_data_ = nullptr;
};

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

Tokenizer::Tokenizer(const GgufFile& f, int64_t n_vocab) : n_vocab_(n_vocab) {
    const std::string model_key = "tokenizer.ggml.model";
    const std::string model = f.has(model_key) ? std::string(f.string(model_key)) : "none";
    if (model == "none" || model == "no_vocab") return;
    if (model != "gpt2" && model != "llama")
        f.fail(model_key, "tokenizer model '" + model.substr(0, 40) +
                              "' is not supported, expected gpt2, llama or none");
    check_vocabulary(f, model, n_vocab);

    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = no_devices;
    params.vocab_only = true;
    CaptureLog log;
    try {
        model_.reset(llama_model_load_from_file(f.path().c_str(), params));
    } catch (const std::exception& e) {
        log.text += e.what();
    }
    if (!model_) {
        std::string why;
        for (const char c : log.text) why += c == '\n' ? ' ' : c;
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

std::vector<int32_t> Tokenizer::tokenize(std::string_view text, bool add_bos, bool special) const {
    require();
    if (text.size() > INT_MAX / 2) throw InvalidArgument("the text is longer than 1 GiB");
    std::vector<int32_t> out(text.size() + 8);
    const auto size = static_cast<int32_t>(text.size());
    // BOS is ours to add: libllama aborts when a model asks for one that it does not define.
    auto run = [&] {
        return guarded("tokenize", [&] {
            return llama_tokenize(vocab_, text.data(), size, out.data(), static_cast<int32_t>(out.size()),
                                  false, special);
        });
    };
    int32_t n = run();
    if (n < 0 && n != INT32_MIN) {
        out.resize(-n);
        n = run();
    }
    if (n < 0) throw InvalidArgument("the text could not be tokenized");
    out.resize(n);
    if (add_bos && this->add_bos() && bos() >= 0) out.insert(out.begin(), bos());
    return out;
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
