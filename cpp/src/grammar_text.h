// The text of a GBNF grammar, read character by character as libllama would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sardine {

// Throws InvalidArgument, with the line of a place in the text.
[[noreturn]] void fail_grammar(std::string_view text, size_t place, const std::string& why);

// Everything that does not read throws InvalidArgument.
class GrammarText {
 public:
    explicit GrammarText(std::string_view text);

    bool ended() const { return pos_ >= text_.size(); }
    size_t pos() const { return pos_; }
    char at(size_t i = 0) const { return pos_ + i < text_.size() ? text_[pos_ + i] : '\0'; }
    void skip(size_t n = 1) { pos_ += n; }
    std::string_view since(size_t begin) const { return text_.substr(begin, pos_ - begin); }
    std::string_view all() const { return text_; }

    [[noreturn]] void fail(size_t place, const std::string& why) const { fail_grammar(text_, place, why); }
    [[noreturn]] void fail(const std::string& why) const { fail(pos_, why); }
    void expect(char c, const std::string& where);
    void expect(std::string_view word, const std::string& why);
    void skip_space(bool newlines);  // and comments
    std::string_view read_name();
    uint64_t read_number();  // large ones as some number beyond every limit
    uint32_t read_char();    // one character of a literal or a class, escaped or not

    // Whether a name may have the character, and so whether one may begin here.
    static bool is_word(char c);
    static bool is_digit(char c) { return c >= '0' && c <= '9'; }

 private:
    std::string_view text_;
    size_t pos_ = 0;
};

}  // namespace sardine
