#include "grammar_check.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "grammar_text.h"

namespace sardine {
namespace {

// libllama refuses left recursion too, by a search that walks every path: no more steps of that, nor deeper.
constexpr uint64_t kMaxSearch = 100'000'000;
constexpr uint64_t kMaxDepth = 5'000;

uint64_t capped(uint64_t a, uint64_t b) {
    return a > kMaxSearch || b > kMaxSearch || (b && a > kMaxSearch / b) ? kMaxSearch + 1 : a * b;
}

std::vector<bool> find_nullable(const std::vector<Rule>& rules) {
    struct Waiting {
        int32_t rule;
        size_t missing;
    };
    std::vector<Waiting> waiting;
    std::vector<std::vector<size_t>> users(rules.size());
    std::vector<bool> nullable(rules.size());
    std::vector<int32_t> todo;
    const auto mark = [&](int32_t r) {
        if (!nullable[r]) todo.push_back(r);
        nullable[r] = true;
    };
    for (int32_t r = 0; r < static_cast<int32_t>(rules.size()); ++r)
        for (const Sequence& s : rules[r].alternatives) {
            if (std::ranges::any_of(s, is_terminal)) continue;
            if (s.empty()) mark(r);
            for (const int32_t item : s) users[item].push_back(waiting.size());
            waiting.push_back({r, s.size()});
        }
    while (!todo.empty()) {
        const int32_t r = todo.back();
        todo.pop_back();
        for (const size_t w : users[r])
            if (--waiting[w].missing == 0) mark(waiting[w].rule);
    }
    return nullable;
}

}  // namespace

void check_recursion(const Grammar& grammar, std::string_view text) {
    const std::vector<Rule>& rules = grammar.rules;
    const std::vector<bool> nullable = find_nullable(rules);
    std::vector<Sequence> left(rules.size());
    for (size_t r = 0; r < rules.size(); ++r)
        for (const Sequence& s : rules[r].alternatives)
            for (const int32_t item : s) {
                if (!is_terminal(item)) left[r].push_back(item);
                if (is_terminal(item) || !nullable[item]) break;
            }

    enum State : char { unseen, open, done };
    std::vector<State> state(rules.size(), unseen);
    std::vector<uint64_t> cost(rules.size()), depth(rules.size());
    std::vector<std::pair<int32_t, size_t>> stack;
    uint64_t total = 0;
    for (size_t start = 0; start < rules.size(); ++start) {
        if (state[start] == unseen) stack.push_back({static_cast<int32_t>(start), 0});
        while (!stack.empty()) {
            auto& [r, next] = stack.back();
            state[r] = open;
            if (next < left[r].size()) {
                const int32_t child = left[r][next++];
                if (state[child] == open)
                    fail_grammar(text, rules[child].place,
                                 "a rule begins with itself, or something that may be empty is repeated "
                                 "without limit (left recursion)");
                if (state[child] == unseen) stack.push_back({child, 0});
                continue;
            }
            uint64_t inner = rules[r].size, deep = 0;
            bool empty_body = false;
            for (const int32_t child : left[r]) {
                inner = std::min(inner + cost[child], kMaxSearch + 1);
                deep = std::max(deep, depth[child]);
                empty_body |= nullable[child];
            }
            const uint64_t chain = empty_body ? rules[r].copies : 1;
            cost[r] = capped(inner, chain);
            depth[r] = deep + chain;
            total = std::min(total + capped(cost[r], rules[r].copies), kMaxSearch + 1);
            if (total > kMaxSearch || depth[r] > kMaxDepth)
                fail_grammar(text, rules[r].place, "the rules refer to each other in too many ways");
            state[r] = done;
            stack.pop_back();
        }
    }
}

}  // namespace sardine
