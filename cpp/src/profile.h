// Where the time of graph runs goes, node by node, as the thread that calls eval sees it.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sardine {

// begin() before a run, node_done() after each node of it on one thread, end() after it. A node's time runs
// from the end of the node before it, so it holds the wait for that one's other threads.
class Profile {
 public:
    // Nanoseconds by kind of node: "MUL_MAT ffn_gate", "CUSTOM routes", ... layers together.
    using Times = std::map<std::string, int64_t>;

    void begin(ggml_cgraph* graph);
    void node_done();
    void end();
    const Times& times() const { return times_; }

 private:
    ggml_cgraph* graph_ = nullptr;
    int64_t begin_ = 0;
    std::vector<int64_t> done_;
    Times times_;
};

}  // namespace sardine
