// The forward pass as a ggml graph: written to read as the equations.
#pragma once

#include <ggml-cpp.h>

#include <vector>

#include "hparams.h"
#include "kernels/attention.h"
#include "kernels/sparse_delta.h"
#include "kv_cache.h"
#include "repack.h"
#include "weights.h"

namespace sardine {

// Whether attention is ggml's flash attention rather than our op. From a whole tile of tokens on ggml
// computes in f32 and is used; below that it sums f16 values in f16, so the modes with experts use ours. The
// base alone (off) uses ggml's while the context is short, so that it equals llama.cpp with flash attention
// bit for bit there; over many positions ours is faster as well (docs/performance.md). ggml's
// is slow on q8_0, whose rows are widened to f32 for it: worth it for a tile of tokens, not for a few.
constexpr int64_t kFlashTokens = 64;
constexpr int64_t kFlashPositions = 512;
inline bool uses_flash_attention(DeltaMode mode, ggml_type kv_type, int64_t n_tokens, int64_t n_positions) {
    return n_tokens >= kFlashTokens ||
           (mode == DeltaMode::off && kv_type != GGML_TYPE_Q8_0 && n_positions <= kFlashPositions);
}

// Multiply-adds of a node at most, by the kind of its matrix, for flash attention and for sparse deltas. ggml
// asks between nodes whether to stop, so they bound how long a cancelled evaluation goes on: to about 0.2 s
// on one AVX-512 core.
struct NodeWork {
    double quantized = 24e9, floats = 12e9, flash = 4e9, sparse = 2e9;
};
NodeWork& node_work();  // changed by tests only, while no context is made or used

// Tokens of a batch whose products with any one matrix of the first n_layers layers, and with the deltas of
// the experts used, stay below that; at least a tile.
int64_t bounded_batch(const Weights& w, int64_t n_layers, int64_t n_expert_used);

// What a graph is built for; a graph is reused while this stays the same.
struct GraphShape {
    int64_t n_tokens = 0;
    int64_t n_kv = 0;  // positions that flash attention reads, a multiple of kKvStep; else 0
    bool all_logits = false;
    bool operator==(const GraphShape&) const = default;
};

// What the custom ops of one layer point at; lives as long as the graphs.
struct DeltaOp {
    const DeltaMatrix* delta = nullptr;  // null in a layer without experts
    const CpuOps* ops = nullptr;
    std::vector<SparseScratch>* scratch = nullptr;  // one per thread
};
struct LayerOps {
    DeltaOp gate, up, down;
    const float* mean = nullptr;
};

struct AttentionOp {
    KvType type;
    int64_t n_heads_kv;
    const CpuOps* ops;
    std::vector<std::vector<float>>* scratch;  // one per thread
    StopCheck stop;
};

struct GraphContext {
    const HParams* hparams;
    const Weights* weights;
    const RepackedWeights* repacked;  // null: none
    const KvCache* cache;
    int64_t n_layers;  // the first ones, which this graph computes
    bool ends_hidden;  // in Graph::hidden, for a device that does the others; else in logits, of all layers
    DeltaMode mode;
    int64_t n_expert_used;
    Steering steering;                // of the routes; a graph is built anew when it changes
    bool keep_router_logits = false;  // as outputs: Graph::router_logits
    std::vector<LayerOps> layer_ops;  // [n_layer]
    AttentionOp attention_op;
};

// One graph. Inputs must be written before every run: their memory is reused within it.
class Graph {
 public:
    Graph(const GraphContext& g, const GraphShape& shape);

    // Bytes that allocate() and a run on n_threads take.
    double bytes(int n_threads) const;
    // Throws InsufficientMemory, after which the allocator is of no use.
    void allocate(ggml_gallocr* allocator);

    GraphShape shape;
    ggml_tensor* tokens = nullptr;      // i32 [n_tokens]
    ggml_tensor* positions = nullptr;   // i32 [n_tokens], null without layers
    ggml_tensor* kv_rows = nullptr;     // i64 [n_tokens], null without layers
    ggml_tensor* mask = nullptr;        // f16 [n_kv, n_tokens], null for our own attention
    ggml_tensor* attn_scale = nullptr;  // f32 [1, 1, n_tokens], null without attention temperature
    ggml_tensor* hidden = nullptr;      // f32 [n_embd, n_tokens], null where there are logits
    std::vector<ggml_tensor*> logits;   // f32 [n_vocab, tokens of a part]; the parts follow each other
    std::vector<ggml_tensor*> routes;   // f32 [2k, n_tokens], one per layer with experts
    // f32 [n_expert, n_tokens] of the same layers, if they are kept
    std::vector<ggml_tensor*> router_logits;
    ggml_cgraph* graph = nullptr;

 private:
    ggml_tensor* flash_attention(const GraphContext& g, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v);
    ggml_tensor* attention(const GraphContext& g, int64_t il, ggml_tensor* x);
    ggml_tensor* feed_forward(const GraphContext& g, int64_t il, ggml_tensor* x, bool last_alone);
    ggml_tensor* rms_norm(const GraphContext& g, ggml_tensor* x, ggml_tensor* weight);
    ggml_tensor* product(ggml_tensor* weight, ggml_tensor* x);
    ggml_tensor* last_token(ggml_tensor* t);
    ggml_tensor* linear(ggml_tensor* weight, ggml_tensor* bias, ggml_tensor* x);
    ggml_tensor* input(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, const char* name);
    ggml_tensor* name(ggml_tensor* t, const char* stem, int64_t il);

    ggml_context_ptr ctx_;
    const RepackedWeights* repacked_;
};

}  // namespace sardine
