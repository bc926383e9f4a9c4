#include "grammar_reader.h"

#include <algorithm>
#include <map>
#include <utility>

#include "grammar_text.h"

namespace sardine {
namespace {

constexpr int kMaxNesting = 200;
constexpr uint64_t kMaxRepetition = 2000;  // libllama's
constexpr uint64_t kMaxElements = 1'000'000;
constexpr uint64_t kNoLimit = UINT64_MAX;
constexpr size_t kMaxTokenName = 1024;

class Reader : private GrammarText {
 public:
    Reader(std::string_view text, const Tokenizer& tokenizer) : GrammarText(text), tokenizer_(tokenizer) {}

    Grammar read() {
        skip_space(true);
        while (!ended()) read_rule();
        for (const auto& [name, id] : names_)
            if (!rules_[id].defined)
                fail(rules_[id].place, "rule '" + name.substr(0, 60) + "' is not defined");
        const auto root = names_.find("root");
        if (root == names_.end()) fail(0, "there is no rule 'root'");
        return {std::move(rules_), std::move(terminals_), root->second, names_tokens_};
    }

 private:
    int32_t new_rule(size_t place, bool defined) {
        rules_.push_back({.alternatives = {}, .place = place, .defined = defined});
        ++symbols_;
        return static_cast<int32_t>(rules_.size()) - 1;
    }

    int32_t named_rule(std::string_view name, size_t place) {
        const auto [it, is_new] = names_.try_emplace(std::string(name), 0);
        if (is_new) it->second = new_rule(place, false);
        return it->second;
    }

    int32_t new_terminal(Terminal t) {
        terminals_.push_back(std::move(t));
        return terminal_item(static_cast<int32_t>(terminals_.size()) - 1);
    }

    int32_t char_terminal(uint32_t c) {
        const auto [it, is_new] = chars_.try_emplace(c, 0);
        if (is_new) it->second = new_terminal({.ranges = {{c, c}}});
        return it->second;
    }

    void read_rule() {
        const size_t begin = pos();
        const std::string_view name = read_name();
        const int32_t id = named_rule(name, begin);
        if (rules_[id].defined)
            fail(begin, "rule '" + std::string(name.substr(0, 60)) + "' is defined twice");
        rules_[id].defined = true;
        rules_[id].place = begin;
        skip_space(false);
        expect("::=", "expected ::= after the name of a rule");
        skip_space(true);
        read_alternatives(id, 0);
        if (!ended() && at() != '\n' && at() != '\r') fail(std::string("unexpected '") + at() + "'");
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
            skip();
            skip_space(true);
        }
    }

    void add_elements(Rule& rule, uint64_t n) {
        rule.size += n;
        elements_ += n;
        if (elements_ > kMaxElements) fail("the grammar is too large once its repetitions are written out");
    }

    // Appends its characters to `items`, and returns how many there are.
    uint64_t read_literal(Sequence& items) {
        const size_t begin = pos();
        skip();
        uint64_t n = 0;
        for (; at() != '"'; ++n) {
            if (ended()) fail(begin, "a literal does not end");
            items.push_back(char_terminal(read_char()));
        }
        skip();
        return n;
    }

    uint64_t read_class(Sequence& items) {
        const size_t begin = pos();
        Terminal t;
        skip();
        if (at() == '^') {
            t.negated = true;
            skip();
        }
        uint64_t n = 0;
        for (; at() != ']'; ++n) {
            if (ended()) fail(begin, "a character class does not end");
            const uint32_t first = read_char();
            t.ranges.emplace_back(first, first);
            if (at() != '-' || at(1) == ']') continue;
            skip();
            if (ended()) fail(begin, "a character class does not end");
            t.ranges.back().second = read_char();
            ++n;
        }
        skip();
        if (n == 0) fail(begin, "a character class is empty");
        items.push_back(new_terminal(std::move(t)));
        return n;
    }

    int32_t read_token() {
        names_tokens_ = true;
        Terminal t;
        if (at() == '!') {
            t.negated = true;
            skip();
        }
        const size_t begin = pos();
        expect('<', "before a token");
        if (at() == '[') {
            skip();
            const uint64_t id = read_number();
            if (id >= static_cast<uint64_t>(llama_vocab_n_tokens(tokenizer_.vocab())))
                fail(begin, "a token id is outside the vocabulary");
            expect(']', "after a token id");
            expect('>', "after a token id");
            t.token = static_cast<int32_t>(id);
            return new_terminal(std::move(t));
        }
        while (!ended() && at() != '>') skip();
        expect('>', "after the name of a token");
        const std::string_view name = since(begin);
        std::vector<int32_t> ids;
        if (name.size() <= kMaxTokenName) ids = tokenizer_.tokenize(name, false, true);
        if (ids.size() != 1)
            fail(begin, "'" + std::string(name.substr(0, 60)) + "' is not one token of the vocabulary");
        t.token = ids[0];
        return new_terminal(std::move(t));
    }

    // Reads symbols until something else comes; `size` grows by the elements that libllama makes of them.
    Sequence read_sequence(int depth, uint64_t& size) {
        const bool nested = depth > 0;
        Sequence items;
        size_t last = 0;         // where the last symbol begins in items
        uint64_t last_size = 0;  // elements of the last symbol
        uint64_t repeats = 1;    // rules that repeating it once more would copy, as libllama counts
        while (!ended()) {
            const char c = at();
            const size_t symbol_start = items.size();
            if (c == '*' || c == '+' || c == '?' || c == '{') {
                const size_t begin = pos();
                const auto [min, max] = read_repetition(nested);
                if (last == items.size()) fail(begin, "there is nothing to repeat");
                repeat(begin, min, max, repeats, items, last, last_size, size);
                skip_space(nested);
                continue;
            }
            repeats = 1;
            if (c == '"') {
                last_size = read_literal(items);
            } else if (c == '[') {
                last_size = read_class(items);
            } else if (c == '<' || c == '!') {
                items.push_back(read_token());
                last_size = 1;
            } else if (c == '.') {
                skip();
                items.push_back(new_terminal({.ranges = {}, .negated = true}));  // nothing else
                last_size = 1;
            } else if (is_word(c)) {
                const size_t begin = pos();
                items.push_back(named_rule(read_name(), begin));
                last_size = 1;
            } else if (c == '(') {
                const size_t begin = pos();
                skip();
                skip_space(true);
                const uint64_t before = symbols_;
                const int32_t group = new_rule(begin, true);
                read_alternatives(group, depth + 1);
                if (at() != ')') fail(begin, "a parenthesis is not closed");
                skip();
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
        const char c = at();
        skip();
        if (c == '*') return {0, kNoLimit};
        if (c == '+') return {1, kNoLimit};
        if (c == '?') return {0, 1};
        skip_space(nested);
        const uint64_t min = read_number();
        uint64_t max = min;
        skip_space(nested);
        if (at() == ',') {
            skip();
            skip_space(nested);
            max = is_digit(at()) ? read_number() : kNoLimit;
            skip_space(nested);
        }
        expect('}', "after a number of repetitions");
        if (max < min) fail("the largest number of repetitions is below the smallest");
        // libllama takes a larger upper limit for none.
        if (min > kMaxRepetition || (max != kNoLimit && max > kMaxRepetition))
            fail("more than " + std::to_string(kMaxRepetition) + " repetitions");
        return {min, max};
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
        if (elements_ + size + once.size() * min > kMaxElements)
            fail(begin, "the grammar is too large once its repetitions are written out");
        if (min == 0) items.resize(last);
        for (uint64_t i = 1; i < min; ++i) items.insert(items.end(), once.begin(), once.end());
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

    const Tokenizer& tokenizer_;
    std::vector<Terminal> terminals_;
    std::map<uint32_t, int32_t> chars_;  // the terminals of single characters
    std::map<std::string, int32_t, std::less<>> names_;
    std::vector<Rule> rules_;
    bool names_tokens_ = false;
    uint64_t symbols_ = 0, elements_ = 0;
};

}  // namespace

Grammar read_grammar(std::string_view text, const Tokenizer& tokenizer) {
    return Reader(text, tokenizer).read();
}

}  // namespace sardine
