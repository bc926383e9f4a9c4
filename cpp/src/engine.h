// What a context computes with: cache, graphs and scratch, and the memory that they take.
#pragma once

#include <ggml-alloc.h>
#include <ggml-cpp.h>

#include <memory>
#include <vector>

#include "graph.h"
#include "kv_cache.h"
#include "offload/device_engine.h"
#include "sardine/model.h"

namespace sardine {

struct EngineOptions {
    int64_t n_ctx = 0;  // or kAutoContext
    int64_t n_batch = 512;
    int n_threads = 1;
    ggml_type kv_type = GGML_TYPE_F16;
    DeltaMode mode = DeltaMode::off;
    StopCheck stop;
};

// Bytes of a context.
struct MemoryNeed {
    double cache = 0, compute = 0;
    double total() const { return cache + compute; }
};

// A graph with memory of its own: single tokens and batches keep one each, so neither evicts the other.
class GraphSlot {
 public:
    // Memory for the largest graph to come. Throws InsufficientMemory.
    void reserve(const GraphContext& context, const GraphShape& largest);
    void forget() { graph_.reset(); }
    // The last graph if it has this shape, else a new one. Throws InsufficientMemory before it allocates.
    Graph& get(const GraphContext& context, const GraphShape& shape, int n_threads);

    int64_t n_built() const { return n_built_; }
    int n_nodes() const { return graph_ ? ggml_graph_n_nodes(graph_->graph) : 0; }
    double bytes() const;

 private:
    ggml_gallocr_ptr allocator_{ggml_gallocr_new(ggml_backend_cpu_buffer_type())};
    std::unique_ptr<Graph> graph_;
    int64_t n_built_ = 0;
};

class Engine {
 public:
    // Throws InsufficientMemory, with the bytes needed and available, before the cache is allocated.
    Engine(const Model& m, const EngineOptions& o);
    ~Engine();
    Engine(const Engine&) = delete;

    int64_t n_ctx() const { return n_ctx_; }
    int64_t n_batch() const { return n_batch_; }
    const KvCache& cache() const { return *cache_; }
    Graph& graph(int64_t n_tokens, int64_t n_past, bool all_logits);
    ggml_status compute(Graph& g) { return ggml_backend_graph_compute(backend_.get(), g.graph); }
    DeviceEngine* device() const { return device_.get(); }  // of the last layers; null without a GPU
    // From now on routes are chosen so; n_expert_used of them for a token, none of which is what `off` does.
    // A change builds graphs anew. Throws InsufficientMemory, and goes on as before.
    void steer(const Steering& steering);
    void keep_router_logits(bool keep);
    int64_t n_expert_used() const { return context_.n_expert_used; }

    void set_abort_callback(ggml_abort_callback f, void* data) {
        ggml_backend_cpu_set_abort_callback(backend_.get(), f, data);
    }

    // Of the last batch's graph, launches included; of all graphs, a GPU's included.
    int batch_nodes() const { return batch_.n_nodes() + (device_ ? device_->batch_nodes() : 0); }
    int64_t graphs_built() const {
        return single_.n_built() + batch_.n_built() + (device_ ? device_->n_built() : 0);
    }
    double bytes() const;  // allocated

 private:
    void change(GraphContext next);
    void reserve_scratch(int64_t k);
    void reserve_graphs();
    std::vector<GraphShape> largest_shapes(int64_t n_tokens) const;
    bool fits(double budget, const EngineOptions& o);
    void choose_context(const Model& m, const EngineOptions& o);
    MemoryNeed need(int64_t n_ctx, const EngineOptions& o);
    GraphShape shape(int64_t n_tokens, int64_t n_past, bool all_logits) const;

    const HParams* h_;
    int n_threads_;
    DeltaMode mode_;
    int64_t top_k_, n_experts_;
    int64_t n_ctx_ = 0, n_batch_ = 0;
    int64_t n_host_layers_;
    std::unique_ptr<DeviceEngine> device_;  // before the cache, part of which is in its memory
    std::unique_ptr<KvCache> cache_;
    ggml_backend_ptr backend_;
    std::vector<SparseScratch> scratch_;
    std::vector<std::vector<float>> attention_rows_;
    GraphContext context_;
    GraphSlot single_, batch_;
};

}  // namespace sardine
