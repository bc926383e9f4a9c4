// The forward pass of a model's last layers on a GPU: ggml graphs for the base, with our launches between
// them where experts act.
//
// A graph ends at what a launch reads and the next one begins with what it writes. These tensors lie in an
// arena; everything between them is allocated by ggml within each graph. Both streams are ordered by events,
// so the host only queues.
#pragma once

#include <ggml-alloc.h>
#include <ggml-cpp.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kv_cache.h"
#include "offload/device_weights.h"
#include "offload/gpu.h"

namespace sardine {

// Up to as many tokens go through the row kernel, whose sums ggml adds as biases of the base's products: at
// one token it fuses them into the products. More go through the tile kernel, in place on the products.
constexpr int64_t kRowsTokens = 8;

struct DeviceContext {
    const HParams* hparams = nullptr;
    const DeviceWeights* weights = nullptr;
    const KvCache* cache = nullptr;
    bool flash = true;  // device_has_flash_attention()
    DeltaMode mode = DeltaMode::off;
    int64_t k = 0;  // experts of a token; 0 where none act
    bool keep_router_logits = false;
    const float* bias = nullptr;    // of the device: [n_experts] or null
    const float* forced = nullptr;  // of the device: [2k] or null
};

bool device_has_flash_attention(const HParams& h, ggml_type kv_type, const Gpu& gpu);

struct DeviceShape {
    int64_t n_tokens = 0;
    int64_t n_kv = 0;  // positions that attention reads, a multiple of kKvStep
    bool all_logits = false;
    bool operator==(const DeviceShape&) const = default;
};

// Memory of the device for what graphs and launches hand over. Without a buffer it only counts.
class Arena {
 public:
    explicit Arena(ggml_backend_buffer* buffer = nullptr) : buffer_(buffer) {}
    void place(ggml_tensor* leaf);
    // Makes a node write where a leaf of its shape reads.
    void place(ggml_tensor* node, const ggml_tensor* leaf) const;
    size_t bytes() const { return used_; }

 private:
    ggml_backend_buffer* buffer_;
    size_t used_ = 0;
};

class DeviceProgram {
 public:
    DeviceProgram(const DeviceContext& c, const DeviceShape& s, ggml_backend_buffer* arena = nullptr);

    // Bytes of the arena, and of the largest graph's own memory.
    size_t arena_bytes() const { return arena_.bytes(); }
    size_t graph_bytes(ggml_backend_buffer_type_t type) const;
    // Throws DeviceError for an operation that the device does not compute.
    void check_supported(const Gpu& gpu) const;
    // Throws InsufficientMemory.
    void allocate(ggml_gallocr* allocator);

    // Makes the graphs others than all before, even where they lie at the same addresses: ggml-cuda compares
    // a graph's tensors, names included, with those it has seen there.
    void name_graphs(const std::string& name);

    // Queues everything. Stops between graphs when `stop` says so, and returns false. Throws DeviceError.
    bool run(const Gpu& gpu, const StopCheck& stop) const;

    DeviceShape shape;
    ggml_tensor* hidden = nullptr;         // f32 [n_embd, n_tokens]: the input
    ggml_tensor* positions = nullptr;      // i32 [n_tokens]
    ggml_tensor* kv_rows = nullptr;        // i64 [n_tokens]
    ggml_tensor* mask = nullptr;           // f16 [n_kv, n_tokens]
    ggml_tensor* attn_scale = nullptr;     // f32 [1, 1, n_tokens], null without attention temperature
    ggml_tensor* last = nullptr;           // i32 [1], null when all logits are wanted
    ggml_tensor* logits = nullptr;         // f32 [n_vocab, n_tokens or 1]
    ggml_tensor* routes = nullptr;         // f32 [2k, n_tokens, layers with experts]; null without any
    ggml_tensor* router_logits = nullptr;  // f32 [n_experts, n_tokens, the same], if they are kept

    int n_nodes() const;

 private:
    struct Step {
        ggml_cgraph* graph = nullptr;
        std::vector<std::function<const char*(device::Device&)>> launches;  // after the graph
    };
    struct Ffn;  // one layer's feed-forward as it is built

    // Whether something is launched in a layer.
    bool has_launches(int64_t il) const;
    ggml_tensor* leaf(ggml_type type, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1);
    ggml_tensor* input(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, const char* name);
    // Ends a graph's value in the leaf.
    void store(ggml_tensor* node, ggml_tensor* to);
    void launch(std::function<const char*(device::Device&)> f);
    void next_graph();

    ggml_tensor* rms_norm(ggml_tensor* x, ggml_tensor* weight);
    ggml_tensor* product(ggml_tensor* weight, ggml_tensor* x);
    ggml_tensor* sum(ggml_tensor* product, ggml_tensor* other);
    ggml_tensor* linear(ggml_tensor* weight, ggml_tensor* bias, ggml_tensor* x);
    ggml_tensor* attention(const LayerWeights& w, int64_t il, ggml_tensor* x);
    ggml_tensor* feed_forward(int64_t il, ggml_tensor* h);
    ggml_tensor* with_rows(const Ffn& f);
    ggml_tensor* with_tiles(const Ffn& f);
    void make_leaves();
    void launch_route(const Ffn& f);
    void launch_tiles(const device::Delta& delta, const ggml_tensor* x, ggml_tensor* y, const float* routes);

    const DeviceContext* c_;
    Arena arena_;
    ggml_context_ptr ctx_;
    std::vector<Step> steps_;
    ggml_cgraph* graph_ = nullptr;  // of the last step
    size_t graph_size_ = 0;         // nodes that a graph has at most
    int64_t n_routed_ = 0;          // layers with experts so far

    // Used by every layer in turn.
    ggml_tensor *residual_ = nullptr, *ffn_in_ = nullptr, *gate_ = nullptr, *up_ = nullptr,
                *hidden_ffn_ = nullptr, *down_ = nullptr, *gain_ = nullptr, *tokens_ = nullptr,
                *tiles_ = nullptr;
};

}  // namespace sardine
