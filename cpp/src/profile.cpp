#include "profile.h"

#include <cctype>
#include <chrono>
#include <string_view>

namespace sardine {
namespace {

int64_t now_ns() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

bool is_empty(const ggml_tensor* t) {
    switch (t->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        default:
            return ggml_nelements(t) == 0;
    }
}

// "blk.3.ffn_gate.weight" -> "ffn_gate", "ffn_gate-3" -> "ffn_gate", "node_12" and " (view)" -> ""
std::string stem(std::string_view name) {
    if (name.starts_with("node_") || name.empty() || name.front() == ' ') return "";
    if (name.starts_with("blk.")) name.remove_prefix(std::min(name.size(), name.find('.', 4) + 1));
    if (name.ends_with(".weight")) name.remove_suffix(7);
    const size_t dash = name.rfind('-');
    if (dash != name.npos && dash + 1 < name.size() &&
        std::isdigit(static_cast<unsigned char>(name[dash + 1])))
        name = name.substr(0, dash);
    return std::string(name);
}

std::string kind(const ggml_tensor* t) {
    const std::string what = stem(t->op == GGML_OP_MUL_MAT ? t->src[0]->name : t->name);
    return ggml_op_name(t->op) + (what.empty() ? "" : " " + what);
}

}  // namespace

void Profile::begin(ggml_cgraph* graph) {
    graph_ = graph;
    done_.clear();
    done_.reserve(ggml_graph_n_nodes(graph));
    begin_ = now_ns();
}

void Profile::node_done() {
    if (graph_) done_.push_back(now_ns());
}

void Profile::end() {
    // ggml runs a norm and the product with its weight as one node, unless it is told not to.
    for (const bool fused : {true, false}) {
        std::vector<const ggml_tensor*> nodes;
        for (int i = 0; i < ggml_graph_n_nodes(graph_); ++i) {
            const ggml_tensor* t = ggml_graph_node(graph_, i);
            const bool follows = fused && t->op == GGML_OP_MUL && t->src[0]->op == GGML_OP_RMS_NORM;
            if (!is_empty(t) && !follows) nodes.push_back(t);
        }
        if (nodes.size() != done_.size()) continue;
        for (size_t i = 0; i < nodes.size(); ++i)
            times_[kind(nodes[i])] += done_[i] - (i ? done_[i - 1] : begin_);
        break;
    }
    graph_ = nullptr;
}

}  // namespace sardine
