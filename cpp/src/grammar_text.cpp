#include "grammar_text.h"

#include <algorithm>
#include <cctype>

#include "sardine/error.h"

namespace sardine {
namespace {

constexpr size_t kMaxText = 1 << 20;

uint32_t hex_value(char c) {
    return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

}  // namespace

void fail_grammar(std::string_view text, size_t place, const std::string& why) {
    const auto line = 1 + std::count(text.begin(), text.begin() + std::min(place, text.size()), '\n');
    throw InvalidArgument("grammar, line " + std::to_string(line) + ": " + why);
}

GrammarText::GrammarText(std::string_view text) : text_(text) {
    if (text_.size() > kMaxText) fail(0, "the text is longer than 1 MiB");
    if (const size_t nul = text_.find('\0'); nul != text_.npos) fail(nul, "there is a NUL character");
}

bool GrammarText::is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || is_digit(c);
}

void GrammarText::expect(char c, const std::string& where) {
    if (at() != c) fail(std::string("expected '") + c + "' " + where);
    ++pos_;
}

void GrammarText::expect(std::string_view word, const std::string& why) {
    if (text_.substr(std::min(pos_, text_.size()), word.size()) != word) fail(why);
    pos_ += word.size();
}

void GrammarText::skip_space(bool newlines) {
    while (!ended()) {
        const char c = at();
        if (c == '#')
            while (!ended() && at() != '\n' && at() != '\r') ++pos_;
        else if (c == ' ' || c == '\t' || (newlines && (c == '\n' || c == '\r')))
            ++pos_;
        else
            return;
    }
}

std::string_view GrammarText::read_name() {
    const size_t begin = pos_;
    while (is_word(at())) ++pos_;
    if (pos_ == begin) fail("expected the name of a rule");
    return since(begin);
}

uint64_t GrammarText::read_number() {
    if (!is_digit(at())) fail("expected a number");
    uint64_t n = 0;
    for (; is_digit(at()); ++pos_) n = std::min<uint64_t>(n * 10 + (at() - '0'), 1'000'000'000);
    return n;
}

uint32_t GrammarText::read_char() {
    if (at() != '\\') {
        // The lead byte says the length; the text is UTF-8, for it comes from a Python string.
        const auto lead = static_cast<uint8_t>(at());
        const int length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        uint32_t value = length == 1 ? lead : lead & (0xFF >> (length + 1));
        ++pos_;
        for (int i = 1; i < length && !ended(); ++i, ++pos_)
            value = value << 6 | (static_cast<uint8_t>(at()) & 0x3F);
        return value;
    }
    const char kind = at(1);
    const int digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    if (!digits && (!kind || std::string_view("trn\\\"[]-").find(kind) == std::string_view::npos))
        fail("unknown escape after a backslash");
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
        if (!std::isxdigit(static_cast<unsigned char>(at(2 + i))))
            fail("expected " + std::to_string(digits) + " hexadecimal digits after \\" + kind);
        value = value << 4 | hex_value(at(2 + i));
    }
    pos_ += 2 + digits;
    if (digits) return value;
    return kind == 't' ? '\t' : kind == 'r' ? '\r' : kind == 'n' ? '\n' : static_cast<uint32_t>(kind);
}

}  // namespace sardine
