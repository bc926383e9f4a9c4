// Reads a GBNF grammar before libllama does.
//
// libllama prints what it dislikes to standard error, and on some texts it aborts, loops or takes all memory:
// a{3,1}, left recursion through rules that may be empty, very deep nesting, huge repetitions.
#pragma once

#include <llama.h>

#include <string_view>

namespace sardine {

struct GrammarFacts {
    bool names_tokens = false;  // has <token> elements, so control tokens are the author's wish
};

// Throws InvalidArgument, with the line, unless libllama parses the text and can match with it.
GrammarFacts check_grammar(std::string_view text, const llama_vocab* vocab);

}  // namespace sardine
