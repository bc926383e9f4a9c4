// Text <-> token ids through libllama's vocabulary. Byte strings are UTF-8 but may be cut inside a character.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf_file.h"
#include "stack_thread.h"

namespace sardine {

class Tokenizer {
 public:
    // Checks what libllama would abort on, then loads the vocabulary. A file whose tokenizer.ggml.model is
    // "none" gives a tokenizer for which available() is false.
    Tokenizer(const GgufFile& file, int64_t n_vocab, const StopPoint& stop = {});

    bool available() const { return model_ != nullptr; }
    const llama_vocab* vocab() const { return vocab_; }

    // add_bos: put BOS first if the model wants one. special: read control tokens in the text as such. Any
    // length of stack will do. Throws InvalidArgument for a text that libllama cannot split,
    // InsufficientMemory.
    std::vector<int32_t> tokenize(std::string_view text, bool add_bos, bool special,
                                  const StopPoint& stop = {}) const;
    // Every token's bytes, control tokens' names among them.
    const std::vector<std::string>& pieces() const;
    // Bytes of the longest token: a text of n times as many has at least n tokens.
    size_t longest_piece() const;
    // One token's bytes; control tokens are "" unless `special`.
    std::string piece(int32_t token, bool special) const;

    int32_t bos() const;  // -1: none
    int32_t eos() const;
    bool add_bos() const;
    bool is_end(int32_t token) const;  // end of generation
    bool is_control(int32_t token) const;
    // Control and user-defined tokens: those that tokenize() recognises in a text when `special`.
    std::vector<int32_t> control_tokens() const;
    std::string text(int32_t token) const;

 private:
    void require() const;
    void check_token(int32_t token) const;

    // How libllama splits a text into words: not at all, by tekken's expressions, or by some other ones.
    enum class Splitter { none, tekken, other };
    Splitter splitter_ = Splitter::none;
    std::shared_ptr<llama_model> model_;
    const llama_vocab* vocab_ = nullptr;
    mutable std::once_flag pieces_made_;
    mutable std::vector<std::string> pieces_;
    int64_t n_vocab_ = 0;
};

}  // namespace sardine
