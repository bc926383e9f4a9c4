#include "graph.h"

#include <cmath>

#include "routing.h"
#include "sardine/error.h"

namespace sardine {
namespace {

// Custom ops: every thread calls with its number; ggml puts a barrier after each node.

int64_t row_floats(const ggml_tensor* t) {
    return static_cast<int64_t>(t->nb[1] / sizeof(float));
}

// src: router logits [n_expert, n_tokens] -> dst [2k, n_tokens]
void route_op(ggml_tensor* dst, int ith, int nth, void*) {
    const ggml_tensor* logits = dst->src[0];
    for (int64_t t = ith; t < dst->ne[1]; t += nth)
        route_token(static_cast<const float*>(logits->data) + t * row_floats(logits), logits->ne[0],
                    dst->ne[0] / 2, static_cast<float*>(dst->data) + t * row_floats(dst));
}

Routes routes_of(const ggml_tensor* t) {
    if (!t) return {};
    return {.data = static_cast<const float*>(t->data), .k = t->ne[0] / 2, .stride = row_floats(t)};
}

// src: q [head_dim, n_head, n_tokens], k and v caches [head_dim * n_head_kv, n_ctx], positions
void attention_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const auto* op = static_cast<const AttentionOp*>(userdata);
    const ggml_tensor* k = dst->src[1];
    const AttentionArgs args{
        .q = static_cast<const float*>(dst->src[0]->data),
        .out = static_cast<float*>(dst->data),
        .k = static_cast<const uint8_t*>(k->data),
        .v = static_cast<const uint8_t*>(dst->src[2]->data),
        .type = op->type,
        .row_bytes = k->nb[1],
        .positions = static_cast<const int32_t*>(dst->src[3]->data),
        .n_tokens = dst->ne[2],
        .n_heads = dst->ne[1],
        .n_heads_kv = op->n_heads_kv,
        .dim = dst->ne[0],
        .scale = 1.0f / std::sqrt(static_cast<float>(dst->ne[0])),
    };
    attention(args, *op->ops, ith, nth, (*op->scratch)[ith].data());
}

// In place on src 0, a base product; src 1: the product's input, src 2: routes, absent for the shared part
// alone
void delta_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const auto* op = static_cast<const DeltaOp*>(userdata);
    const ggml_tensor* x = dst->src[1];
    const SparseDeltaArgs args{
        .delta = op->delta,
        .routes = routes_of(dst->src[2]),
        .n_tokens = dst->ne[1],
        .x = static_cast<const float*>(x->data),
        .x_stride = row_floats(x),
        .y = static_cast<float*>(dst->data),
        .y_stride = row_floats(dst),
    };
    sparse_delta_add(args, *op->ops, ith, nth, (*op->scratch)[ith]);
}

// In place on src 0, the FFN's output; src 1: routes; userdata: the experts' means
void gain_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const auto* mean = static_cast<const float*>(userdata);
    const Routes routes = routes_of(dst->src[1]);
    for (int64_t t = ith; t < dst->ne[1]; t += nth) {
        float gain = 1.0f;
        for (int64_t j = 0; j < routes.k; ++j) gain += routes.weight(t, j) * mean[routes.expert(t, j)];
        float* y = static_cast<float*>(dst->data) + t * row_floats(dst);
        for (int64_t i = 0; i < dst->ne[0]; ++i) y[i] *= gain;
    }
}

ggml_tensor* in_place(ggml_context* ctx, ggml_tensor* y, std::initializer_list<ggml_tensor*> args,
                      ggml_custom_op_t fun, const void* userdata) {
    ggml_tensor* list[2];
    int n = 0;
    for (ggml_tensor* a : args) list[n++] = a;
    return ggml_custom_inplace(ctx, y, list, n, fun, GGML_N_TASKS_MAX, const_cast<void*>(userdata));
}

}  // namespace

ggml_tensor* Graph::name(ggml_tensor* t, const char* stem, int64_t il) {
    ggml_format_name(t, "%s-%d", stem, static_cast<int>(il));
    return t;
}

ggml_tensor* Graph::input(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, const char* name) {
    ggml_tensor* t = ggml_new_tensor_3d(ctx_.get(), type, ne0, ne1, ne2);
    ggml_set_input(t);
    ggml_set_name(t, name);
    return t;
}

ggml_tensor* Graph::rms_norm(const GraphContext& g, ggml_tensor* x, ggml_tensor* weight) {
    return ggml_mul(ctx_.get(), ggml_rms_norm(ctx_.get(), x, g.hparams->rms_eps), weight);
}

ggml_tensor* Graph::linear(ggml_tensor* weight, ggml_tensor* bias, ggml_tensor* x) {
    ggml_tensor* y = ggml_mul_mat(ctx_.get(), weight, x);
    return bias ? ggml_add(ctx_.get(), y, bias) : y;
}

ggml_tensor* Graph::attention(const GraphContext& g, int64_t il, ggml_tensor* x) {
    ggml_context* ctx = ctx_.get();
    const HParams& h = *g.hparams;
    const LayerWeights& w = g.weights->layers[il];
    const int64_t n_tokens = shape.n_tokens, hd = h.head_dim;

    auto rope = [&](ggml_tensor* t) {
        const RopeParams& r = h.rope;
        return ggml_rope_ext(ctx, t, positions, g.weights->rope_freqs, static_cast<int>(hd),
                             GGML_ROPE_TYPE_NORMAL, r.n_ctx_orig, r.freq_base, r.freq_scale, r.ext_factor,
                             r.attn_factor, r.beta_fast, r.beta_slow);
    };
    ggml_tensor* q = ggml_reshape_3d(ctx, linear(w.wq, w.bq, x), hd, h.n_head, n_tokens);
    ggml_tensor* k = ggml_reshape_3d(ctx, linear(w.wk, w.bk, x), hd, h.n_head_kv, n_tokens);
    ggml_tensor* v = linear(w.wv, w.bv, x);
    q = rope(q);
    k = rope(k);
    if (attn_scale) q = ggml_mul(ctx, q, attn_scale);

    // New rows first, then read the cache: the order of the nodes is the order of the run.
    ggml_tensor* k_cache = g.cache->k(il);
    ggml_tensor* v_cache = g.cache->v(il);
    ggml_build_forward_expand(graph, q);
    ggml_build_forward_expand(
        graph, ggml_set_rows(ctx, k_cache, ggml_reshape_2d(ctx, k, h.n_embd_kv(), n_tokens), kv_rows));
    ggml_build_forward_expand(graph, ggml_set_rows(ctx, v_cache, v, kv_rows));

    ggml_tensor* out;  // [head_dim, n_head, n_tokens]
    if (mask) {
        auto heads = [&](ggml_tensor* cache) {  // [head_dim, n_kv, n_head_kv]
            return ggml_view_3d(ctx, cache, hd, shape.n_kv, h.n_head_kv, cache->nb[1],
                                ggml_row_size(cache->type, hd), 0);
        };
        out = ggml_flash_attn_ext(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), heads(k_cache), heads(v_cache), mask,
                                  1.0f / std::sqrt(static_cast<float>(hd)), 0.0f, 0.0f);
        ggml_prec_set_acc(out, GGML_PREC_F32);
    } else {
        ggml_tensor* args[] = {q, k_cache, v_cache, positions};
        out = ggml_custom_4d(ctx, GGML_TYPE_F32, hd, h.n_head, n_tokens, 1, args, 4, attention_op,
                             GGML_N_TASKS_MAX, const_cast<AttentionOp*>(&g.attention_op));
    }
    out = ggml_reshape_2d(ctx, out, hd * h.n_head, n_tokens);
    return name(linear(w.wo, w.bo, out), "attn_out", il);
}

// docs/format.md, "What is computed"
ggml_tensor* Graph::feed_forward(const GraphContext& g, int64_t il, ggml_tensor* x) {
    ggml_context* ctx = ctx_.get();
    const LayerWeights& w = g.weights->layers[il];
    const LayerExperts* experts = g.mode == DeltaMode::off ? nullptr : w.experts.get();
    const bool sparse = experts && g.mode == DeltaMode::sparse;
    const LayerOps& ops = g.layer_ops[il];

    ggml_tensor* route = nullptr;
    if (experts) {
        ggml_tensor* logits = ggml_mul_mat(ctx, experts->router, x);
        route = ggml_custom_4d(ctx, GGML_TYPE_F32, 2 * g.n_expert_used, shape.n_tokens, 1, 1, &logits, 1,
                               route_op, GGML_N_TASKS_MAX, nullptr);
        ggml_set_output(name(route, "routes", il));
        routes.push_back(route);
    }
    auto product = [&](ggml_tensor* weight, const DeltaOp& op, ggml_tensor* in) {
        ggml_tensor* y = ggml_mul_mat(ctx, weight, in);
        if (!op.delta || op.delta->empty()) return y;
        if (sparse) return in_place(ctx, y, {in, route}, delta_op, &op);
        return op.delta->shared.data ? in_place(ctx, y, {in}, delta_op, &op) : y;
    };
    ggml_tensor* gate = name(product(w.ffn_gate, ops.gate, x), "ffn_gate", il);
    ggml_tensor* up = name(product(w.ffn_up, ops.up, x), "ffn_up", il);
    ggml_tensor* hidden = name(ggml_swiglu_split(ctx, gate, up), "ffn_hidden", il);
    ggml_tensor* down = product(w.ffn_down, ops.down, hidden);
    if (experts && g.mode == DeltaMode::gain) down = in_place(ctx, down, {route}, gain_op, ops.mean);
    return name(down, "ffn_out", il);
}

Graph::Graph(const GraphContext& g, const GraphShape& s, ggml_gallocr* allocator) : shape(s) {
    const HParams& h = *g.hparams;
    const size_t max_nodes = 64 + 40 * static_cast<size_t>(h.n_layer);
    ctx_.reset(ggml_init(
        {.mem_size = max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false),
         .mem_buffer = nullptr,
         .no_alloc = true}));
    ggml_context* ctx = ctx_.get();
    graph = ggml_new_graph_custom(ctx, max_nodes, false);

    tokens = input(GGML_TYPE_I32, s.n_tokens, 1, 1, "tokens");
    positions = input(GGML_TYPE_I32, s.n_tokens, 1, 1, "positions");
    kv_rows = input(GGML_TYPE_I64, s.n_tokens, 1, 1, "kv_rows");
    if (uses_flash_attention(g.mode, s.n_tokens)) mask = input(GGML_TYPE_F16, s.n_kv, s.n_tokens, 1, "mask");
    if (h.attn_temp_scale != 0.0f) attn_scale = input(GGML_TYPE_F32, 1, 1, s.n_tokens, "attn_scale");
    if (!s.all_logits) last = input(GGML_TYPE_I32, 1, 1, 1, "last");

    ggml_tensor* x = ggml_get_rows(ctx, g.weights->tok_embd, tokens);  // [n_embd, n_tokens]
    for (int64_t il = 0; il < h.n_layer; ++il) {
        const LayerWeights& w = g.weights->layers[il];
        x = ggml_add(ctx, attention(g, il, name(rms_norm(g, x, w.attn_norm), "attn_norm", il)), x);
        x = ggml_add(ctx, feed_forward(g, il, name(rms_norm(g, x, w.ffn_norm), "ffn_norm", il)), x);
        name(x, "l_out", il);
    }
    if (last) x = ggml_get_rows(ctx, x, last);
    logits = ggml_mul_mat(ctx, g.weights->output, rms_norm(g, x, g.weights->output_norm));
    ggml_set_name(logits, "logits");
    ggml_set_output(logits);
    ggml_build_forward_expand(graph, logits);
    for (ggml_tensor* r : routes) ggml_build_forward_expand(graph, r);

    if (!ggml_gallocr_alloc_graph(allocator, graph))
        throw InsufficientMemory("no memory to compute a batch of " + std::to_string(s.n_tokens) +
                                 " tokens: use a smaller n_batch");
}

}  // namespace sardine
