// Reads the text of a GBNF grammar into rules, as libllama would.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "grammar_check.h"

namespace sardine {

constexpr int32_t kTerminal = -1;

using Sequence = std::vector<int32_t>;  // rule numbers, or kTerminal

struct Rule {
    std::vector<Sequence> alternatives;
    size_t place = 0;      // in the text
    bool defined = false;  // with ::=, or made up for a group or a repetition
    uint64_t copies = 1;   // libllama writes a limited repetition as this many rules
    uint64_t size = 0;     // elements of a copy
};

struct Grammar {
    std::vector<Rule> rules;
    GrammarFacts facts;
};

// Throws InvalidArgument, with the line.
Grammar read_grammar(std::string_view text, const llama_vocab* vocab);
[[noreturn]] void fail_grammar(std::string_view text, size_t place, const std::string& why);

}  // namespace sardine
