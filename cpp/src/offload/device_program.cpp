#include "offload/device_program.h"

#include <algorithm>
#include <cmath>

#include "sardine/error.h"

namespace sardine {
namespace {

constexpr size_t kLeafAlignment = 256;
constexpr size_t kNodesOfLayer = 48, kGraphsOfLayer = 4;

// Where tensors lie while memory is only measured; never read.
char nowhere[kLeafAlignment];

}  // namespace

void Arena::place(ggml_tensor* leaf) {
    const size_t at = used_;
    used_ += (ggml_nbytes(leaf) + kLeafAlignment - 1) / kLeafAlignment * kLeafAlignment;
    if (!buffer_)
        leaf->data = nowhere;
    else
        ggml_backend_tensor_alloc(buffer_, leaf,
                                  static_cast<char*>(ggml_backend_buffer_get_base(buffer_)) + at);
}

void Arena::place(ggml_tensor* node, const ggml_tensor* leaf) const {
    if (!buffer_)
        node->data = nowhere;
    else
        ggml_backend_tensor_alloc(buffer_, node, leaf->data);
}

ggml_tensor* DeviceProgram::leaf(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2) {
    ggml_tensor* t = ggml_new_tensor_3d(ctx_.get(), type, ne0, ne1, ne2);
    arena_.place(t);
    return t;
}

ggml_tensor* DeviceProgram::input(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, const char* name) {
    ggml_tensor* t = leaf(type, ne0, ne1, ne2);
    ggml_set_name(t, name);
    return t;
}

void DeviceProgram::next_graph() {
    graph_ = ggml_new_graph_custom(ctx_.get(), graph_size_, false);
    steps_.push_back({.graph = graph_, .launches = {}});
}

void DeviceProgram::store(ggml_tensor* node, ggml_tensor* to) {
    arena_.place(node, to);
    ggml_set_output(node);  // so that no fusion leaves it out
    ggml_build_forward_expand(graph_, node);
}

void DeviceProgram::launch(std::function<const char*(device::Device&)> f) {
    steps_.back().launches.push_back(std::move(f));
}

ggml_tensor* DeviceProgram::rms_norm(ggml_tensor* x, ggml_tensor* weight) {
    return ggml_mul(ctx_.get(), ggml_rms_norm(ctx_.get(), x, c_->hparams->rms_eps), weight);
}

// Activations of 8 bits at least, also where the GPU could do with 4 for weights of 4. Sums of f16 weights
// are in f32 for few tokens; in batches ggml-cuda would widen whole matrices for that, and sums in f16 as in
// llama.cpp.
ggml_tensor* DeviceProgram::product(ggml_tensor* weight, ggml_tensor* x) {
    ggml_tensor* y = ggml_mul_mat(ctx_.get(), weight, x);
    if (x->ne[1] <= kRowsTokens) ggml_prec_set_acc(y, GGML_PREC_F32);
    ggml_prec_set_src(y, GGML_PREC_Q8, 1);
    return y;
}

ggml_tensor* DeviceProgram::linear(ggml_tensor* weight, ggml_tensor* bias, ggml_tensor* x) {
    ggml_tensor* y = product(weight, x);
    return bias ? sum(y, bias) : y;
}

// ggml-cuda computes a product and what is added to it at once, and then in the precision of the sum.
ggml_tensor* DeviceProgram::sum(ggml_tensor* product, ggml_tensor* other) {
    ggml_tensor* y = ggml_add(ctx_.get(), product, other);
    y->op_params[0] = product->op == GGML_OP_MUL_MAT ? product->op_params[0] : 0;
    return y;
}

// As Graph::attention, always by ggml: flash attention where the device has it for these heads and keys.
ggml_tensor* DeviceProgram::attention(const LayerWeights& w, int64_t il, ggml_tensor* x) {
    ggml_context* ctx = ctx_.get();
    const HParams& h = *c_->hparams;
    const int64_t n = shape.n_tokens, hd = h.head_dim;
    auto rope = [&](ggml_tensor* t) {
        const RopeParams& r = h.rope;
        return ggml_rope_ext(ctx, t, positions, c_->weights->rope_freqs(), static_cast<int>(hd),
                             GGML_ROPE_TYPE_NORMAL, r.n_ctx_orig, r.freq_base, r.freq_scale, r.ext_factor,
                             r.attn_factor, r.beta_fast, r.beta_slow);
    };
    ggml_tensor* q = rope(ggml_reshape_3d(ctx, linear(w.wq, w.bq, x), hd, h.n_head, n));
    ggml_tensor* k = rope(ggml_reshape_3d(ctx, linear(w.wk, w.bk, x), hd, h.n_head_kv, n));
    ggml_tensor* v = linear(w.wv, w.bv, x);
    if (attn_scale) q = ggml_mul(ctx, q, attn_scale);

    ggml_tensor* k_cache = c_->cache->k(il);
    ggml_tensor* v_cache = c_->cache->v(il);
    ggml_build_forward_expand(graph_, q);
    ggml_build_forward_expand(
        graph_, ggml_set_rows(ctx, k_cache, ggml_reshape_2d(ctx, k, h.n_embd_kv(), n), kv_rows));
    ggml_build_forward_expand(graph_, ggml_set_rows(ctx, v_cache, v, kv_rows));
    auto heads = [&](ggml_tensor* cache) {  // [head_dim, n_kv, n_head_kv]
        return ggml_view_3d(ctx, cache, hd, shape.n_kv, h.n_head_kv, cache->nb[1],
                            ggml_row_size(cache->type, hd), 0);
    };
    const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
    q = ggml_permute(ctx, q, 0, 2, 1, 3);
    ggml_tensor* out;  // [head_dim, n_head, n_tokens], contiguous
    if (c_->flash) {
        // For one token ggml-cuda has a kernel with sums in f32 for these heads, and takes it when a tensor's
        // rows lie at odd places: here those of the second sequence, which is none. Its tensor cores sum in
        // f16.
        if (n == 1 && hd % 64 == 0 && hd <= 256 && hd != 192)
            q = ggml_view_4d(ctx, q, hd, 1, h.n_head, 1, q->nb[1], q->nb[2], q->nb[3] + sizeof(float), 0);
        out = ggml_flash_attn_ext(ctx, q, heads(k_cache), heads(v_cache), mask, scale, 0.0f, 0.0f);
        ggml_prec_set_acc(out, GGML_PREC_F32);
    } else {
        ggml_tensor* scores = ggml_mul_mat(ctx, heads(k_cache), q);  // [n_kv, n_tokens, n_head]
        ggml_prec_set_acc(scores, GGML_PREC_F32);
        scores = ggml_soft_max_ext(ctx, scores, mask, scale, 0.0f);
        ggml_tensor* columns = ggml_cont(ctx, ggml_transpose(ctx, heads(v_cache)));  // [n_kv, head_dim, ..]
        out = ggml_mul_mat(ctx, columns, scores);
        ggml_prec_set_acc(out, GGML_PREC_F32);
        out = ggml_cont(ctx, ggml_permute(ctx, out, 0, 2, 1, 3));
    }
    return linear(w.wo, w.bo, ggml_reshape_2d(ctx, out, hd * h.n_head, n));
}

bool device_has_flash_attention(const HParams& h, ggml_type kv_type, const Gpu& gpu) {
    const ggml_context_ptr owner(
        ggml_init({.mem_size = 8 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
    ggml_context* ctx = owner.get();
    for (const int64_t n : {1, 64}) {
        ggml_tensor* k = ggml_new_tensor_3d(ctx, kv_type, h.head_dim, kKvStep, h.n_head_kv);
        ggml_tensor* q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, h.head_dim, n, h.n_head);
        ggml_tensor* mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, kKvStep, n);
        if (!gpu.supports(ggml_flash_attn_ext(ctx, q, k, k, mask, 1.0f, 0.0f, 0.0f))) return false;
    }
    return true;
}

void DeviceProgram::make_leaves() {
    const HParams& h = *c_->hparams;
    const int64_t n = shape.n_tokens;
    hidden = input(GGML_TYPE_F32, h.n_embd, n, 1, "hidden");
    positions = input(GGML_TYPE_I32, n, 1, 1, "positions");
    kv_rows = input(GGML_TYPE_I64, n, 1, 1, "kv_rows");
    mask = input(GGML_TYPE_F16, shape.n_kv, n, 1, "mask");
    if (h.attn_temp_scale != 0.0f) attn_scale = input(GGML_TYPE_F32, 1, 1, n, "attn_scale");
    if (!shape.all_logits) last = input(GGML_TYPE_I32, 1, 1, 1, "last");
    int64_t n_layers = 0, n_experts = 0;
    for (int64_t il = c_->weights->first(); il < h.n_layer; ++il)
        if (const DeviceExperts* x = c_->weights->layer(il).experts.get()) {
            ++n_layers;
            n_experts = x->n_experts;
        }
    if (n_layers == 0) return;
    if (c_->mode != DeltaMode::off && c_->k > 0) {
        routes = leaf(GGML_TYPE_F32, 2 * c_->k, n, n_layers);
        if (c_->keep_router_logits) router_logits = leaf(GGML_TYPE_F32, n_experts, n, n_layers);
    }
    residual_ = leaf(GGML_TYPE_F32, h.n_embd, n);
    ffn_in_ = leaf(GGML_TYPE_F32, h.n_embd, n);
    gate_ = leaf(GGML_TYPE_F32, h.n_ff, n);
    up_ = leaf(GGML_TYPE_F32, h.n_ff, n);
    hidden_ffn_ = leaf(GGML_TYPE_F32, h.n_ff, n);
    down_ = leaf(GGML_TYPE_F32, h.n_embd, n);
    gain_ = leaf(GGML_TYPE_F32, 1, n);
    if (n <= kRowsTokens) return;
    const auto tokens = static_cast<int32_t>(n), experts = static_cast<int32_t>(n_experts);
    tokens_ = leaf(GGML_TYPE_I32, n, std::max<int64_t>(c_->k, 1));
    tiles_ = leaf(GGML_TYPE_I32, 3, device::max_tiles(tokens, experts), std::max<int64_t>(c_->k, 1));
}

DeviceProgram::DeviceProgram(const DeviceContext& c, const DeviceShape& s, ggml_backend_buffer* arena)
    : shape(s), c_(&c), arena_(arena) {
    const HParams& h = *c.hparams;
    const int64_t first = c.weights->first();
    size_t run = 0, longest = 0, n_graphs = 1;  // layers that share a graph
    for (int64_t il = first; il < h.n_layer; ++il) {
        const bool experts = c.weights->layer(il).experts != nullptr;
        run = experts && ((c.mode != DeltaMode::off && c.k > 0) || has_launches(il)) ? 0 : run + 1;
        longest = std::max(longest, run);
        n_graphs += experts ? kGraphsOfLayer : 1;
    }
    graph_size_ = kNodesOfLayer * (longest + 2);
    const size_t n_tensors = kNodesOfLayer * (h.n_layer - first + 1) + 64;
    ctx_.reset(ggml_init({.mem_size = n_tensors * ggml_tensor_overhead() +
                                      n_graphs * ggml_graph_overhead_custom(graph_size_, false),
                          .mem_buffer = nullptr,
                          .no_alloc = true}));
    if (!ctx_) throw InsufficientMemory("no memory for the GPU's graphs");
    make_leaves();
    next_graph();
    ggml_tensor* x = hidden;
    for (int64_t il = first; il < h.n_layer; ++il) {
        const LayerWeights& w = c.weights->layer(il).base;
        x = sum(attention(w, il, rms_norm(x, w.attn_norm)), x);
        x = feed_forward(il, x);
    }
    if (last) x = ggml_get_rows(ctx_.get(), x, last);
    logits = product(c.weights->output(), rms_norm(x, c.weights->output_norm()));
    ggml_set_output(logits);
    ggml_build_forward_expand(graph_, logits);
}

int DeviceProgram::n_nodes() const {
    int n = 0;
    for (const Step& s : steps_) n += ggml_graph_n_nodes(s.graph) + static_cast<int>(s.launches.size());
    return n;
}

size_t DeviceProgram::graph_bytes(ggml_backend_buffer_type_t type) const {
    size_t most = 0;
    for (const Step& s : steps_) {
        const ggml_gallocr_ptr measure(ggml_gallocr_new(type));
        size_t size = 0;
        ggml_gallocr_reserve_n_size(measure.get(), s.graph, nullptr, nullptr, &size);
        most = std::max(most, size);
    }
    return most;
}

void DeviceProgram::check_supported(const Gpu& gpu) const {
    for (const Step& s : steps_)
        for (int i = 0; i < ggml_graph_n_nodes(s.graph); ++i) {
            const ggml_tensor* t = ggml_graph_node(s.graph, i);
            if (gpu.supports(t)) continue;
            std::string types;
            for (const ggml_tensor* from : t->src)
                if (from) types += std::string(types.empty() ? "" : ", ") + ggml_type_name(from->type);
            throw DeviceError(gpu.name() + ": ggml does not compute " + ggml_op_name(t->op) + " of " + types +
                              " there: use another kv_type or quantization, or n_gpu_layers=0");
        }
}

void DeviceProgram::allocate(ggml_gallocr* allocator) {
    // All graphs share the memory, so it is made large enough for each before any of them takes addresses.
    bool done = true;
    for (const Step& s : steps_) done = done && ggml_gallocr_reserve(allocator, s.graph);
    for (const Step& s : steps_) done = done && ggml_gallocr_alloc_graph(allocator, s.graph);
    if (!done)
        throw InsufficientMemory("the GPU has no memory to compute a batch of " +
                                 std::to_string(shape.n_tokens) + " tokens: use a smaller n_batch");
}

void DeviceProgram::name_graphs(const std::string& name) {
    for (const Step& s : steps_)
        if (ggml_graph_n_nodes(s.graph) > 0) ggml_set_name(ggml_graph_node(s.graph, 0), name.c_str());
}

bool DeviceProgram::run(const Gpu& gpu, const StopCheck& stop) const {
    device::Device& d = gpu.kernels();
    for (const Step& s : steps_) {
        if (stop(0)) return false;
        if (ggml_graph_n_nodes(s.graph) > 0) gpu.compute(s.graph);
        const bool paced = shape.n_tokens > kRowsTokens;
        if (s.launches.empty() && !paced) continue;
        gpu.check(d.wait_for_backend());
        for (const auto& f : s.launches) gpu.check(f(d));
        if (!s.launches.empty()) gpu.check(d.backend_waits());
        if (paced) gpu.check(d.keep_pace());
    }
    return true;
}

}  // namespace sardine
