// Reads the text of a GBNF grammar into rules, as libllama would.
#pragma once

#include <string_view>

#include "grammar.h"
#include "tokenizer.h"

namespace sardine {

// Throws InvalidArgument, with the line.
Grammar read_grammar(std::string_view text, const Tokenizer& tokenizer);

}  // namespace sardine
