// Which tokens a grammar lets come next, as libllama's matcher says, but with limits and interruptible.
//
// A stack is what is still to be matched, the next element on top; the text so far leaves a set of stacks.
// Sets are numbered as they are met, and so are the steps between them, so that most tokens take a few
// look-ups.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "grammar.h"
#include "sardine/progress.h"

namespace sardine {

class GrammarMatcher {
 public:
    // Throws GrammarTooComplex.
    explicit GrammarMatcher(const Grammar& grammar);

    // Whether a token of these bytes may come next; never if it has none, or if the text would be no UTF-8
    // (some of which libllama takes). `stop` is asked on the way. Throws GrammarTooComplex.
    bool allows(int32_t token, std::string_view piece, const StopPoint& stop);
    // Whether the text may end.
    bool may_end() const;
    // Goes on with a token; false if the grammar does not allow it. After an exception nothing has changed.
    bool accept(int32_t token, std::string_view piece, const StopPoint& stop);

 private:
    // Flattened: an alternative's elements lie one after the other, an end behind them.
    struct Element {
        enum Kind : uint8_t { end, rule, chars, token } kind;
        int32_t value;  // of a rule or a terminal
    };
    // A stack: the element on top and the stack below.
    struct Node {
        int32_t element, below;
        bool operator==(const Node&) const = default;
    };
    struct NodeHash {
        size_t operator()(const Node& n) const;
    };
    struct Utf8 {  // a character that has begun
        uint32_t value = 0;
        int missing = 0;     // bytes; -1: it is none
        uint32_t least = 0;  // a smaller one has a shorter form
    };
    using Stacks = std::vector<int32_t>;  // sorted numbers of nodes, or kEmpty
    struct StacksHash {
        size_t operator()(const Stacks& s) const;
    };

    static constexpr int32_t kEmpty = -1, kNone = 0;  // the empty stack; the set without stacks

    int32_t push(int32_t element, int32_t below);
    int32_t number(Stacks stacks);
    void advance(std::vector<int32_t> todo, Stacks& out);
    int32_t after(int32_t node);
    int32_t step(int32_t set, uint32_t c);
    int32_t step_token(int32_t set, int32_t token);
    int32_t walk(std::string_view piece, Utf8& partial);
    static std::pair<uint32_t, uint32_t> range(const Utf8& begun);
    bool has_partial(int32_t set, const Utf8& partial) const;
    std::vector<int32_t> tops(const Stacks& stacks) const;
    bool matches(const Element& e, uint32_t c) const;
    void count_work();
    void forget_others();

    std::vector<Terminal> terminals_;
    bool names_tokens_;
    std::vector<Element> elements_;
    std::vector<std::vector<int32_t>> starts_;  // of each rule's alternatives

    std::vector<Node> nodes_;
    std::unordered_map<Node, int32_t, NodeHash> node_numbers_;
    std::vector<const Stacks*> sets_;
    std::vector<std::vector<int32_t>> tops_;  // of each set, the different terminals of characters on top
    std::unordered_map<Stacks, int32_t, StacksHash> set_numbers_;
    std::unordered_map<uint64_t, int32_t> steps_;  // set and character -> set
    uint64_t n_entries_ = 0;                       // of all sets

    int32_t now_ = kNone;
    Utf8 partial_;
    const StopPoint* stop_ = nullptr;
    uint64_t work_ = 0;
};

}  // namespace sardine
