// A GBNF grammar as rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace sardine {

// What one character, or one token, of the text must be.
struct Terminal {
    std::vector<std::pair<uint32_t, uint32_t>> ranges;  // of code points, ends included
    bool negated = false;                               // anything else
    int32_t token = -1;                                 // not a character but this token
};

// Rule numbers, or terminals as what terminal_item() gives.
using Sequence = std::vector<int32_t>;

constexpr bool is_terminal(int32_t item) {
    return item < 0;
}
// Its own inverse.
constexpr int32_t terminal_item(int32_t index) {
    return -1 - index;
}

struct Rule {
    std::vector<Sequence> alternatives;
    size_t place = 0;      // in the text
    bool defined = false;  // with ::=, or made up for a group or a repetition
    // A limited repetition: as many rules, each of which is the alternatives, the first of which goes on with
    // the rule before it.
    uint64_t copies = 1;
    uint64_t size = 0;  // elements of a copy, as libllama counts
};

struct Grammar {
    std::vector<Rule> rules;
    std::vector<Terminal> terminals;
    int32_t root = 0;
    bool names_tokens = false;  // has <token> elements, so control tokens are the author's wish
};

}  // namespace sardine
