#include "grammar_reader.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <utility>

#include "sardine/error.h"

namespace sardine {
namespace {

constexpr size_t kMaxText = 1 << 20;
constexpr int kMaxNesting = 200;
constexpr uint64_t kMaxRepetition = 2000;  // libllama's
constexpr uint64_t kMaxElements = 1'000'000;
constexpr uint64_t kNoLimit = UINT64_MAX;

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || is_digit(c);
}

class Reader {
 public:
    Reader(std::string_view text, const llama_vocab* vocab) : text_(text), vocab_(vocab) {}

    void read() {
        if (text_.size() > kMaxText) fail(0, "the text is longer than 1 MiB");
        if (const size_t nul = text_.find('\0'); nul != text_.npos) fail(nul, "there is a NUL character");
        skip_space(true);
        while (pos_ < text_.size()) read_rule();
        for (const auto& [name, id] : names_)
            if (!rules_[id].defined)
                fail(rules_[id].place, "rule '" + name.substr(0, 60) + "' is not defined");
        if (!names_.contains("root")) fail(0, "there is no rule 'root'");
    }

    Grammar take() { return {std::move(rules_), facts_}; }

 private:
    char at(size_t i = 0) const { return pos_ + i < text_.size() ? text_[pos_ + i] : '\0'; }
    [[noreturn]] void fail(size_t place, const std::string& why) const { fail_grammar(text_, place, why); }
    [[noreturn]] void fail(const std::string& why) const { fail(pos_, why); }
    void expect(char c, const std::string& where) {
        if (at() != c) fail(std::string("expected '") + c + "' " + where);
        ++pos_;
    }

    void skip_space(bool newlines) {
        while (pos_ < text_.size()) {
            const char c = at();
            if (c == '#')
                while (pos_ < text_.size() && at() != '\n' && at() != '\r') ++pos_;
            else if (c == ' ' || c == '\t' || (newlines && (c == '\n' || c == '\r')))
                ++pos_;
            else
                return;
        }
    }

    int32_t new_rule(size_t place, bool defined) {
        rules_.push_back({.alternatives = {}, .place = place, .defined = defined});
        ++symbols_;
        return static_cast<int32_t>(rules_.size()) - 1;
    }

    int32_t named_rule(std::string_view name) {
        const auto [it, is_new] = names_.try_emplace(std::string(name), 0);
        if (is_new) it->second = new_rule(pos_, false);
        return it->second;
    }

    std::string_view read_name() {
        const size_t begin = pos_;
        while (is_word(at())) ++pos_;
        if (pos_ == begin) fail("expected the name of a rule");
        return text_.substr(begin, pos_ - begin);
    }

    void read_rule() {
        const size_t begin = pos_;
        const std::string_view name = read_name();
        const int32_t id = named_rule(name);
        if (rules_[id].defined)
            fail(begin, "rule '" + std::string(name.substr(0, 60)) + "' is defined twice");
        rules_[id].defined = true;
        rules_[id].place = begin;
        skip_space(false);
        if (text_.substr(pos_, 3) != "::=") fail("expected ::= after the name of a rule");
        pos_ += 3;
        skip_space(true);
        read_alternatives(id, 0);
        if (pos_ < text_.size() && at() != '\n' && at() != '\r')
            fail(std::string("unexpected '") + at() + "'");
        skip_space(true);
    }

    void read_alternatives(int32_t id, int depth) {
        if (depth > kMaxNesting) fail("parentheses are nested deeper than " + std::to_string(kMaxNesting));
        while (true) {
            uint64_t size = 1;
            Sequence items = read_sequence(depth, size);
            rules_[id].alternatives.push_back(std::move(items));
            add_elements(rules_[id], size);
            if (at() != '|') return;
            ++pos_;
            skip_space(true);
        }
    }

    void add_elements(Rule& rule, uint64_t n) {
        rule.size += n;
        elements_ += n;
        if (elements_ > kMaxElements) fail("the grammar is too large once its repetitions are written out");
    }

    void skip_char() {  // one character of a literal or a class, escaped or not
        if (at() != '\\') {
            ++pos_;
            while ((at() & 0xC0) == 0x80) ++pos_;
            return;
        }
        const char kind = at(1);
        const int digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
        if (!digits && (!kind || std::string_view("trn\\\"[]-").find(kind) == std::string_view::npos))
            fail("unknown escape after a backslash");
        for (int i = 0; i < digits; ++i)
            if (!std::isxdigit(static_cast<unsigned char>(at(2 + i))))
                fail("expected " + std::to_string(digits) + " hexadecimal digits after \\" + kind);
        pos_ += 2 + digits;
    }

    uint64_t read_literal() {
        const size_t begin = pos_++;
        uint64_t n = 0;
        for (; at() != '"'; ++n) {
            if (pos_ >= text_.size()) fail(begin, "a literal does not end");
            skip_char();
        }
        ++pos_;
        return n;
    }

    uint64_t read_class() {
        const size_t begin = pos_++;
        if (at() == '^') ++pos_;
        uint64_t n = 0;
        for (; at() != ']'; ++n) {
            if (pos_ >= text_.size()) fail(begin, "a character class does not end");
            skip_char();
            if (at() != '-' || at(1) == ']') continue;
            ++pos_;
            if (pos_ >= text_.size()) fail(begin, "a character class does not end");
            skip_char();
            ++n;
        }
        ++pos_;
        if (n == 0) fail(begin, "a character class is empty");
        return n;
    }

    uint64_t read_number() {
        if (!is_digit(at())) fail("expected a number");
        uint64_t n = 0;
        for (; is_digit(at()); ++pos_) n = std::min<uint64_t>(n * 10 + (at() - '0'), 1'000'000'000);
        return n;
    }

    void read_token() {
        facts_.names_tokens = true;
        if (at() == '!') ++pos_;
        const size_t begin = pos_;
        expect('<', "before a token");
        if (at() == '[') {
            ++pos_;
            if (read_number() >= static_cast<uint64_t>(llama_vocab_n_tokens(vocab_)))
                fail(begin, "a token id is outside the vocabulary");
            expect(']', "after a token id");
            expect('>', "after a token id");
            return;
        }
        while (pos_ < text_.size() && at() != '>') ++pos_;
        expect('>', "after the name of a token");
        const std::string_view name = text_.substr(begin, pos_ - begin);
        llama_token tokens[2];
        if (llama_tokenize(vocab_, name.data(), static_cast<int32_t>(name.size()), tokens, 2, false, true) !=
            1)
            fail(begin, "'" + std::string(name.substr(0, 60)) + "' is not one token of the vocabulary");
    }

    // Reads symbols until something else comes; `size` grows by the elements that libllama makes of them.
    Sequence read_sequence(int depth, uint64_t& size) {
        const bool nested = depth > 0;
        Sequence items;
        size_t last = 0;         // where the last symbol begins in items
        uint64_t last_size = 0;  // elements of the last symbol
        uint64_t repeats = 1;    // rules that repeating it once more would copy, as libllama counts
        while (pos_ < text_.size()) {
            const char c = at();
            const size_t symbol_start = items.size();
            if (c == '*' || c == '+' || c == '?' || c == '{') {
                const size_t begin = pos_;
                const auto [min, max] = read_repetition(nested);
                if (last == items.size()) fail(begin, "there is nothing to repeat");
                repeat(begin, min, max, repeats, items, last, last_size, size);
                skip_space(nested);
                continue;
            }
            repeats = 1;
            if (c == '"') {
                last_size = read_literal();
                if (last_size) items.push_back(kTerminal);
            } else if (c == '[') {
                last_size = read_class();
                items.push_back(kTerminal);
            } else if (c == '<' || c == '!') {
                read_token();
                last_size = 1;
                items.push_back(kTerminal);
            } else if (c == '.') {
                ++pos_;
                last_size = 1;
                items.push_back(kTerminal);
            } else if (is_word(c)) {
                const size_t begin = pos_;
                const std::string_view name = read_name();
                pos_ = begin;  // where an unknown name stands
                items.push_back(named_rule(name));
                pos_ += name.size();
                last_size = 1;
            } else if (c == '(') {
                const size_t begin = pos_++;
                skip_space(true);
                const uint64_t before = symbols_;
                const int32_t group = new_rule(begin, true);
                read_alternatives(group, depth + 1);
                if (at() != ')') fail(begin, "a parenthesis is not closed");
                ++pos_;
                repeats = std::max<uint64_t>(1, symbols_ - before);
                items.push_back(group);
                last_size = 1;
            } else {
                break;
            }
            last = symbol_start;
            size += last_size;
            skip_space(nested);
        }
        return items;
    }

    std::pair<uint64_t, uint64_t> read_repetition(bool nested) {
        const char c = text_[pos_++];
        if (c == '*') return {0, kNoLimit};
        if (c == '+') return {1, kNoLimit};
        if (c == '?') return {0, 1};
        skip_space(nested);
        const uint64_t min = read_number();
        uint64_t max = min;
        skip_space(nested);
        if (at() == ',') {
            ++pos_;
            skip_space(nested);
            max = is_digit(at()) ? read_number() : kNoLimit;
            skip_space(nested);
        }
        expect('}', "after a number of repetitions");
        if (max < min) fail("the largest number of repetitions is below the smallest");
        if (min > kMaxRepetition) fail("more than " + std::to_string(kMaxRepetition) + " repetitions");
        return {min, max > kMaxRepetition ? kNoLimit : max};
    }

    void repeat(size_t begin, uint64_t min, uint64_t max, uint64_t& repeats, Sequence& items, size_t last,
                uint64_t& last_size, uint64_t& size) {
        const bool limited = max != kNoLimit;
        const uint64_t total = limited && max > 0 ? max : std::max<uint64_t>(1, min);
        if (repeats * total > kMaxRepetition)
            fail(begin, "nested repetitions come to more than " + std::to_string(kMaxRepetition) + " rules");
        repeats *= total;
        const Sequence once(items.begin() + static_cast<std::ptrdiff_t>(last), items.end());
        const uint64_t optional = limited ? max - min : 1;
        if (min == 0) items.resize(last);
        size += last_size * min - last_size;
        uint64_t now = last_size * min;
        if (optional > 0) {
            const int32_t more = new_rule(begin, true);
            symbols_ += optional - 1;
            Sequence body = once;
            if (!limited) body.push_back(more);
            rules_[more].alternatives = {body, {}};
            rules_[more].copies = optional;
            add_elements(rules_[more], last_size + 3);
            elements_ += (optional - 1) * (last_size + 3);
            items.push_back(more);
            now += 1;
            size += 1;
        }
        if (elements_ + size > kMaxElements)
            fail(begin, "the grammar is too large once its repetitions are written out");
        last_size = now;
    }

    std::string_view text_;
    const llama_vocab* vocab_;
    size_t pos_ = 0;
    std::map<std::string, int32_t, std::less<>> names_;
    std::vector<Rule> rules_;
    GrammarFacts facts_;
    uint64_t symbols_ = 0, elements_ = 0;
};

}  // namespace

Grammar read_grammar(std::string_view text, const llama_vocab* vocab) {
    Reader reader(text, vocab);
    reader.read();
    return reader.take();
}

void fail_grammar(std::string_view text, size_t place, const std::string& why) {
    const auto line = 1 + std::count(text.begin(), text.begin() + std::min(place, text.size()), '\n');
    throw InvalidArgument("grammar, line " + std::to_string(line) + ": " + why);
}

}  // namespace sardine
