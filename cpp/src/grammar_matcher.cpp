#include "grammar_matcher.h"

#include <algorithm>
#include <utility>

#include "sardine/error.h"

namespace sardine {
namespace {

// About 150 MB together. A grammar of JSON needs some hundreds of each.
constexpr size_t kMaxNodes = 1 << 20, kMaxEntries = 1 << 22, kMaxSteps = 1 << 20;
constexpr uint64_t kAskEvery = 1 << 10;  // steps of work

size_t mix(uint64_t h) {
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
}

bool contains(const Terminal& t, uint32_t low, uint32_t high) {
    const bool found =
        std::ranges::any_of(t.ranges, [&](const auto& r) { return r.first <= high && low <= r.second; });
    return found != t.negated;
}

[[noreturn]] void too_complex() {
    throw GrammarTooComplex(
        "the grammar has too many ways to go on from here: rules that can match the same text in several "
        "ways, "
        "repeated or nested, multiply. Write them so that the next characters decide between them");
}

}  // namespace

size_t GrammarMatcher::NodeHash::operator()(const Node& n) const {
    return mix(static_cast<uint64_t>(static_cast<uint32_t>(n.element)) << 32 |
               static_cast<uint32_t>(n.below));
}

size_t GrammarMatcher::StacksHash::operator()(const Stacks& s) const {
    uint64_t h = s.size();
    for (const int32_t n : s) h = mix(h ^ static_cast<uint32_t>(n));
    return h;
}

GrammarMatcher::GrammarMatcher(const Grammar& g)
    : terminals_(g.terminals), names_tokens_(g.names_tokens), starts_(g.rules.size()) {
    const auto add_item = [&](int32_t item) {
        if (!is_terminal(item)) return elements_.push_back({Element::rule, item});
        const int32_t t = terminal_item(item);
        elements_.push_back({terminals_[t].token < 0 ? Element::chars : Element::token, t});
    };
    const auto add_sequence = [&](int32_t rule, const Sequence& s, int32_t then) {
        starts_[rule].push_back(static_cast<int32_t>(elements_.size()));
        for (const int32_t item : s) add_item(item);
        if (then >= 0) elements_.push_back({Element::rule, then});
        elements_.push_back({Element::end, 0});
    };
    for (int32_t r = 0; r < static_cast<int32_t>(g.rules.size()); ++r) {
        // A repetition of at most n: the rule is the last of a chain of n.
        int32_t then = -1;
        for (uint64_t i = 1; i <= g.rules[r].copies; ++i) {
            const bool last = i == g.rules[r].copies;
            const auto id = last ? r : static_cast<int32_t>(starts_.size());
            if (!last) starts_.emplace_back();
            bool first = true;
            for (const Sequence& s : g.rules[r].alternatives)
                add_sequence(id, s, std::exchange(first, false) ? then : -1);
            then = id;
        }
    }
    number({});
    std::vector<int32_t> todo;
    for (const int32_t start : starts_[g.root]) todo.push_back(push(start, kEmpty));
    Stacks begin;
    advance(std::move(todo), begin);
    now_ = number(std::move(begin));
}

// A stack whose top is an end is the one below.
int32_t GrammarMatcher::push(int32_t element, int32_t below) {
    if (elements_[element].kind == Element::end) return below;
    const auto [it, is_new] =
        node_numbers_.try_emplace({element, below}, static_cast<int32_t>(nodes_.size()));
    if (is_new) {
        if (nodes_.size() >= kMaxNodes) {
            node_numbers_.erase(it);
            too_complex();
        }
        nodes_.push_back({element, below});
    }
    return it->second;
}

int32_t GrammarMatcher::number(Stacks stacks) {
    const auto found = set_numbers_.find(stacks);
    if (found != set_numbers_.end()) return found->second;
    if (n_entries_ + stacks.size() > kMaxEntries || sets_.size() >= kMaxSteps) too_complex();
    n_entries_ += stacks.size();
    tops_.push_back(tops(stacks));
    const auto it = set_numbers_.emplace(std::move(stacks), static_cast<int32_t>(sets_.size())).first;
    sets_.push_back(&it->first);
    return it->second;
}

std::vector<int32_t> GrammarMatcher::tops(const Stacks& stacks) const {
    std::vector<int32_t> found;
    for (const int32_t stack : stacks) {
        if (stack == kEmpty) continue;
        const Element& e = elements_[nodes_[stack].element];
        if (e.kind == Element::chars) found.push_back(e.value);
    }
    std::ranges::sort(found);
    found.erase(std::ranges::unique(found).begin(), found.end());
    return found;
}

// Replaces rules on top by what they may begin with, until every top is a terminal.
void GrammarMatcher::advance(std::vector<int32_t> todo, Stacks& out) {
    std::unordered_map<int32_t, bool> seen;
    while (!todo.empty()) {
        count_work();
        const int32_t stack = todo.back();
        todo.pop_back();
        if (!seen.try_emplace(stack, true).second) continue;
        if (stack == kEmpty || elements_[nodes_[stack].element].kind != Element::rule) {
            out.push_back(stack);
            continue;
        }
        const int32_t rest = after(stack);
        for (const int32_t start : starts_[elements_[nodes_[stack].element].value])
            todo.push_back(push(start, rest));
    }
    std::ranges::sort(out);
}

// The stack once its top is matched.
int32_t GrammarMatcher::after(int32_t node) {
    const Node n = nodes_[node];
    return push(n.element + 1, n.below);
}

bool GrammarMatcher::matches(const Element& e, uint32_t c) const {
    return e.kind == Element::chars && contains(terminals_[e.value], c, c);
}

int32_t GrammarMatcher::step(int32_t set, uint32_t c) {
    const uint64_t key = static_cast<uint64_t>(set) << 32 | c;
    if (const auto found = steps_.find(key); found != steps_.end()) return found->second;
    int32_t to = kNone;
    // Most characters fit nothing, and large sets have few terminals.
    if (std::ranges::any_of(tops_[set], [&](int32_t t) { return contains(terminals_[t], c, c); })) {
        std::vector<int32_t> todo;
        for (const int32_t stack : *sets_[set]) {
            count_work();
            if (stack != kEmpty && matches(elements_[nodes_[stack].element], c)) todo.push_back(after(stack));
        }
        Stacks next;
        advance(std::move(todo), next);
        to = number(std::move(next));
    }
    if (steps_.size() < kMaxSteps) steps_.emplace(key, to);
    return to;
}

// By the elements that are tokens.
int32_t GrammarMatcher::step_token(int32_t set, int32_t token) {
    if (!names_tokens_) return kNone;
    std::vector<int32_t> todo;
    for (const int32_t stack : *sets_[set]) {
        if (stack == kEmpty) continue;
        const Element& e = elements_[nodes_[stack].element];
        if (e.kind != Element::token) continue;
        const Terminal& t = terminals_[e.value];
        if ((t.token == token) != t.negated) todo.push_back(after(stack));
    }
    if (todo.empty()) return kNone;
    Stacks next;
    advance(std::move(todo), next);
    return number(std::move(next));
}

// Where a token's characters lead, and what it leaves of one that has begun. As for libllama, a NUL ends the
// token.
int32_t GrammarMatcher::walk(std::string_view piece, Utf8& partial) {
    static constexpr int8_t kLength[16] = {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 3, 4};
    static constexpr uint32_t kLeast[5] = {0, 0, 1 << 7, 1 << 11, 1 << 16};
    int32_t set = now_;
    for (const char byte : piece.substr(0, piece.find('\0'))) {
        const auto b = static_cast<uint8_t>(byte);
        if (partial.missing > 0) {
            if (b >> 6 != 2) {
                partial = {0, -1};
                return kNone;
            }
            partial.value = partial.value << 6 | (b & 0x3F);
            --partial.missing;
        } else {
            const int length = kLength[b >> 4];
            if (length == 0) return kNone;
            partial = {b & ((1u << (8 - length)) - 1), length - 1, kLeast[length]};
        }
        if (const auto [low, high] = range(partial); low > high) {
            partial = {0, -1};
            return kNone;
        }
        if (partial.missing > 0) continue;
        set = step(set, partial.value);
        if (set == kNone) return kNone;
    }
    return set;
}

// The first and the last character that it may become; first > last if there is none.
std::pair<uint32_t, uint32_t> GrammarMatcher::range(const Utf8& begun) {
    const int bits = begun.missing * 6;
    uint32_t low = std::max(begun.value << bits, begun.least);
    uint32_t high = std::min<uint32_t>(begun.value << bits | ((1u << bits) - 1), 0x10FFFF);
    if (low >= 0xD800 && low <= 0xDFFF) low = 0xE000;  // surrogates are no characters
    if (high >= 0xD800 && high <= 0xDFFF) high = 0xD7FF;
    return {low, high};
}

bool GrammarMatcher::has_partial(int32_t set, const Utf8& partial) const {
    if (partial.missing < 0) return false;
    const std::pair<uint32_t, uint32_t> may_be = range(partial);
    return std::ranges::any_of(
        tops_[set], [&](int32_t t) { return contains(terminals_[t], may_be.first, may_be.second); });
}

void GrammarMatcher::count_work() {
    if (++work_ % kAskEvery == 0 && stop_ && *stop_) (*stop_)();
}

bool GrammarMatcher::may_end() const {
    return partial_.missing == 0 && !sets_[now_]->empty() && sets_[now_]->front() == kEmpty;
}

bool GrammarMatcher::allows(int32_t token, std::string_view piece, const StopPoint& stop) {
    stop_ = &stop;
    if (piece.empty() || piece.front() == '\0') return false;
    count_work();
    Utf8 partial = partial_;
    const int32_t set = walk(piece, partial);
    if (set != kNone && (partial.missing == 0 || has_partial(set, partial))) return true;
    return step_token(now_, token) != kNone;
}

bool GrammarMatcher::accept(int32_t token, std::string_view piece, const StopPoint& stop) {
    stop_ = &stop;
    if (nodes_.size() > kMaxNodes / 2 || n_entries_ > kMaxEntries / 2 || steps_.size() > kMaxSteps / 2)
        forget_others();
    Utf8 partial = partial_;
    const int32_t by_chars = walk(piece, partial);
    const int32_t by_token = step_token(now_, token);
    Stacks both = *sets_[by_chars];
    both.insert(both.end(), sets_[by_token]->begin(), sets_[by_token]->end());
    std::ranges::sort(both);
    both.erase(std::ranges::unique(both).begin(), both.end());
    const int32_t next = number(std::move(both));
    if (next == kNone) return false;
    now_ = next;
    partial_ = by_chars == kNone ? Utf8{} : partial;
    return true;
}

// Keeps the set of now, with new numbers.
void GrammarMatcher::forget_others() {
    Stacks kept = *sets_[now_];
    std::vector<int32_t> to(nodes_.size(), kEmpty);  // new numbers; before that, 0 for what is kept
    for (int32_t stack : kept)
        for (; stack != kEmpty && to[stack] == kEmpty; stack = nodes_[stack].below) to[stack] = 0;
    const std::vector<Node> old = std::move(nodes_);
    nodes_.clear();
    node_numbers_.clear();
    sets_.clear();
    tops_.clear();
    set_numbers_.clear();
    steps_.clear();
    n_entries_ = 0;
    number({});
    for (size_t i = 0; i < old.size(); ++i)  // what is below a node is older
        if (to[i] != kEmpty) to[i] = push(old[i].element, old[i].below == kEmpty ? kEmpty : to[old[i].below]);
    for (int32_t& stack : kept)
        if (stack != kEmpty) stack = to[stack];
    std::ranges::sort(kept);
    now_ = number(std::move(kept));
}

}  // namespace sardine
