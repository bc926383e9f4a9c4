// Refuses grammars that no matcher ends on, or only after very long: left recursion, also through rules that
// may be empty, and rules that refer to each other in too many ways.
#pragma once

#include <string_view>

#include "grammar.h"

namespace sardine {

// Throws InvalidArgument, with the line in the text that the grammar was read from.
void check_recursion(const Grammar& grammar, std::string_view text);

}  // namespace sardine
