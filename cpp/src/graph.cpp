#include "graph.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "page_advice.h"
#include "routing.h"
#include "sardine/error.h"

namespace sardine {
namespace {

// Custom ops: every thread calls with its number; ggml puts a barrier after each node.

int64_t row_floats(const ggml_tensor* t) {
    return static_cast<int64_t>(t->nb[1] / sizeof(float));
}

// src: router logits [n_expert, n_tokens] -> dst [2k, n_tokens]; userdata: the steering
void route_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const auto* steering = static_cast<const Steering*>(userdata);
    const ggml_tensor* logits = dst->src[0];
    for (int64_t t = ith; t < dst->ne[1]; t += nth)
        route_token(static_cast<const float*>(logits->data) + t * row_floats(logits), logits->ne[0],
                    dst->ne[0] / 2, static_cast<float*>(dst->data) + t * row_floats(dst), *steering);
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
        .stop = op->stop,
    };
    attention(args, *op->ops, ith, nth, (*op->scratch)[ith].data());
}

// src: a q8_0 cache [n_embd_kv, n_ctx] -> dst f32 [n_embd_kv, n_kv], its first rows
void dequantize_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const ggml_tensor* rows = dst->src[0];
    dequantize_rows(static_cast<const uint8_t*>(rows->data), rows->nb[1], dst->ne[1], dst->ne[0],
                    *static_cast<const AttentionOp*>(userdata)->ops, ith, nth,
                    static_cast<float*>(dst->data));
}

// src: a product's input, routes (absent for the shared part alone) -> dst, its tiles
void pack_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const auto* op = static_cast<const DeltaOp*>(userdata);
    const ggml_tensor* x = dst->src[0];
    const TokenRoutes r{routes_of(dst->src[1]), x->ne[1], op->delta->n_experts};
    pack_tiles(tile_ops(*op->delta, *op->ops), r, static_cast<const float*>(x->data), row_floats(x), x->ne[0],
               ith, nth, (*op->scratch)[ith].tiles, packed_begin(dst->data));
}

// In place on src 0, a base product; src 1: the product's input, or its tiles; src 2: routes, absent for the
// shared part alone
void delta_op(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const auto* op = static_cast<const DeltaOp*>(userdata);
    const ggml_tensor* x = dst->src[1];
    const bool tiled = dst->ne[1] >= kMinTileTokens;
    const SparseDeltaArgs args{
        .delta = op->delta,
        .routes = routes_of(dst->src[2]),
        .n_tokens = dst->ne[1],
        .x = tiled ? nullptr : static_cast<const float*>(x->data),
        .x_stride = tiled ? 0 : row_floats(x),
        .tiles = tiled ? packed_begin(x->data) : nullptr,
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

// Cuts n rows into parts of about `step`, a multiple of a tile; none is less than a tile but n itself.
std::vector<int64_t> part_sizes(int64_t n, int64_t step) {
    std::vector<int64_t> out;
    for (; n >= step + kFlashTokens; n -= step) out.push_back(step);
    out.push_back(n);
    return out;
}

// The largest multiple of a tile, at least one, for which n * work_of_one <= limit.
int64_t bounded_rows(double work_of_one, double limit) {
    const double n = std::min(limit / work_of_one, 1e9);
    return std::max(kFlashTokens, static_cast<int64_t>(n) / kFlashTokens * kFlashTokens);
}

int64_t bounded_rows(const ggml_tensor* weight) {
    return bounded_rows(static_cast<double>(ggml_nelements(weight)),
                        ggml_is_quantized(weight->type) ? node_work().quantized : node_work().floats);
}

ggml_tensor* in_place(ggml_context* ctx, ggml_tensor* y, std::initializer_list<ggml_tensor*> args,
                      ggml_custom_op_t fun, const void* userdata) {
    ggml_tensor* list[2];
    int n = 0;
    for (ggml_tensor* a : args) list[n++] = a;
    return ggml_custom_inplace(ctx, y, list, n, fun, GGML_N_TASKS_MAX, const_cast<void*>(userdata));
}

}  // namespace

NodeWork& node_work() {
    static NodeWork work;
    return work;
}

int64_t bounded_batch(const Weights& w, int64_t n_layers, int64_t n_expert_used) {
    int64_t n = INT64_MAX;
    for (const LayerWeights& l : std::span(w.layers).first(n_layers)) {
        for (const ggml_tensor* t : {l.wq, l.wk, l.wv, l.wo, l.ffn_gate, l.ffn_up, l.ffn_down})
            n = std::min(n, bounded_rows(t));
        if (!l.experts) continue;
        for (const DeltaMatrix* d : {&l.experts->gate, &l.experts->up, &l.experts->down}) {
            const int64_t arrays = n_expert_used + (d->shared.data ? 1 : 0);
            const auto work = static_cast<double>(d->n_positions * arrays);
            if (work > 0) n = std::min(n, bounded_rows(work, node_work().sparse));
        }
    }
    return n;
}

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

// By the tokens of the batch, also where the last one alone is multiplied: as libllama's, to the bit.
ggml_tensor* Graph::product(ggml_tensor* weight, ggml_tensor* x) {
    return ggml_mul_mat(ctx_.get(), repacked_ ? repacked_->of(weight, shape.n_tokens) : weight, x);
}

ggml_tensor* Graph::linear(ggml_tensor* weight, ggml_tensor* bias, ggml_tensor* x) {
    ggml_tensor* y = product(weight, x);
    return bias ? ggml_add(ctx_.get(), y, bias) : y;
}

// In one node, or in parts of tokens and then of heads where that would be too much work for one.
ggml_tensor* Graph::flash_attention(const GraphContext& g, ggml_tensor* q, ggml_tensor* k_cache,
                                    ggml_tensor* v_cache) {
    ggml_context* ctx = ctx_.get();
    const HParams& h = *g.hparams;
    const int64_t hd = h.head_dim, shared = h.n_head / h.n_head_kv;
    auto widened = [&](ggml_tensor* cache) {
        return cache->type != GGML_TYPE_Q8_0 ? cache
                                             : ggml_custom_4d(ctx, GGML_TYPE_F32, cache->ne[0], shape.n_kv, 1,
                                                              1, &cache, 1, dequantize_op, GGML_N_TASKS_MAX,
                                                              const_cast<AttentionOp*>(&g.attention_op));
    };
    ggml_tensor* k = widened(k_cache);
    ggml_tensor* v = widened(v_cache);
    const double work = 2.0 * static_cast<double>(hd * h.n_head) * static_cast<double>(shape.n_kv);
    const std::vector<int64_t> parts = part_sizes(shape.n_tokens, bounded_rows(work, node_work().flash));
    int64_t groups = 1;
    while (groups < h.n_head_kv &&
           (h.n_head_kv % groups != 0 ||
            work * static_cast<double>(parts.back()) / static_cast<double>(groups) > 2 * node_work().flash))
        ++groups;

    auto heads = [&](ggml_tensor* cache, int64_t first) {  // [head_dim, n_kv, heads of a group]
        const size_t bytes = ggml_row_size(cache->type, hd);
        return ggml_view_3d(ctx, cache, hd, shape.n_kv, h.n_head_kv / groups, cache->nb[1], bytes,
                            first * bytes);
    };
    ggml_tensor* out = nullptr;
    int64_t t = 0;
    for (const int64_t n : parts) {
        ggml_tensor* part = nullptr;
        ggml_tensor* rows = ggml_view_2d(ctx, mask, mask->ne[0], n, mask->nb[1], t * mask->nb[1]);
        for (int64_t i = 0; i < groups; ++i) {
            const int64_t head = h.n_head_kv / groups * i;
            ggml_tensor* some = ggml_view_3d(ctx, q, hd, h.n_head / groups, n, q->nb[1], q->nb[2],
                                             t * q->nb[2] + head * shared * q->nb[1]);
            ggml_tensor* y =
                ggml_flash_attn_ext(ctx, ggml_permute(ctx, some, 0, 2, 1, 3), heads(k, head), heads(v, head),
                                    rows, 1.0f / std::sqrt(static_cast<float>(hd)), 0.0f, 0.0f);
            ggml_prec_set_acc(y, GGML_PREC_F32);
            part = part ? ggml_concat(ctx, part, y, 1) : y;
        }
        out = out ? ggml_concat(ctx, out, part, 2) : part;
        t += n;
    }
    return out;
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
        out = flash_attention(g, q, k_cache, v_cache);
    } else {
        ggml_tensor* args[] = {q, k_cache, v_cache, positions};
        out = ggml_custom_4d(ctx, GGML_TYPE_F32, hd, h.n_head, n_tokens, 1, args, 4, attention_op,
                             GGML_N_TASKS_MAX, const_cast<AttentionOp*>(&g.attention_op));
        name(out, "attention", il);
    }
    out = ggml_reshape_2d(ctx, out, hd * h.n_head, n_tokens);
    return name(linear(w.wo, w.bo, out), "attn_out", il);
}

// The last column of t [n, n_tokens].
ggml_tensor* Graph::last_token(ggml_tensor* t) {
    return t->ne[1] == 1 ? t : ggml_view_2d(ctx_.get(), t, t->ne[0], 1, t->nb[1], (t->ne[1] - 1) * t->nb[1]);
}

// docs/format.md, "What is computed". Of all tokens, whose routes are wanted in any case, or of the last
// alone.
ggml_tensor* Graph::feed_forward(const GraphContext& g, int64_t il, ggml_tensor* x, bool last_alone) {
    ggml_context* ctx = ctx_.get();
    const LayerWeights& w = g.weights->layers[il];
    const LayerExperts* experts = g.mode == DeltaMode::off ? nullptr : w.experts.get();
    const bool sparse = experts && g.mode == DeltaMode::sparse;
    const LayerOps& ops = g.layer_ops[il];

    ggml_tensor* route = nullptr;
    if (experts) {
        ggml_tensor* logits = ggml_mul_mat(ctx, experts->router, x);
        route = ggml_custom_4d(ctx, GGML_TYPE_F32, 2 * g.n_expert_used, shape.n_tokens, 1, 1, &logits, 1,
                               route_op, GGML_N_TASKS_MAX, const_cast<Steering*>(&g.steering));
        ggml_set_output(name(route, "routes", il));
        if (g.keep_router_logits) {
            ggml_set_output(name(logits, "router_logits", il));
            router_logits.push_back(logits);
        }
        routes.push_back(route);
    }
    if (last_alone) {
        x = last_token(x);
        if (route) route = last_token(route);
    }
    const int64_t n_tokens = x->ne[1];
    // The last input's tiles: those of gate serve up as well.
    struct {
        const ggml_tensor* of = nullptr;
        const TileOps* ops = nullptr;
        ggml_tensor* tiles = nullptr;
    } packed;
    auto operand = [&](const DeltaOp& op, ggml_tensor* in, ggml_tensor* routes) {
        if (n_tokens < kMinTileTokens) return in;
        const TileOps& tiles = tile_ops(*op.delta, *op.ops);
        if (packed.of != in || packed.ops != &tiles) {
            const int64_t bytes =
                packed_bytes(tiles, in->ne[0], n_tokens, routes ? g.n_expert_used : 0, op.delta->n_experts);
            ggml_tensor* args[] = {in, routes};
            packed = {in, &tiles,
                      ggml_custom_4d(ctx, GGML_TYPE_I8, bytes, 1, 1, 1, args, routes ? 2 : 1, pack_op,
                                     GGML_N_TASKS_MAX, const_cast<DeltaOp*>(&op))};
            name(packed.tiles, "tiles", il);
        }
        return packed.tiles;
    };
    auto with_delta = [&](ggml_tensor* weight, const DeltaOp& op, ggml_tensor* in) {
        ggml_tensor* y = product(weight, in);
        if (!op.delta || op.delta->empty()) return y;
        if (sparse) return in_place(ctx, y, {operand(op, in, route), route}, delta_op, &op);
        return op.delta->shared.data ? in_place(ctx, y, {operand(op, in, nullptr)}, delta_op, &op) : y;
    };
    ggml_tensor* gate = name(with_delta(w.ffn_gate, ops.gate, x), "ffn_gate", il);
    ggml_tensor* up = name(with_delta(w.ffn_up, ops.up, x), "ffn_up", il);
    ggml_tensor* hidden = name(ggml_swiglu_split(ctx, gate, up), "ffn_hidden", il);
    ggml_tensor* down = with_delta(w.ffn_down, ops.down, hidden);
    if (experts && g.mode == DeltaMode::gain) down = in_place(ctx, down, {route}, gain_op, ops.mean);
    return name(down, "ffn_out", il);
}

Graph::Graph(const GraphContext& g, const GraphShape& s) : shape(s), repacked_(g.repacked) {
    const HParams& h = *g.hparams;
    const bool flash = g.n_layers > 0 && s.n_kv > 0;
    const int64_t n_logits = s.all_logits ? s.n_tokens : 1;
    // Flash attention of a layer has at most a node of each kind for a tile and head; the shapes of real
    // models need one.
    size_t max_nodes = 64 + 48 * static_cast<size_t>(h.n_layer) + 4 * (n_logits / kFlashTokens + 1);
    if (flash) {
        const double work = 2.0 * static_cast<double>(h.head_dim * h.n_head) * static_cast<double>(s.n_kv);
        const int64_t step = bounded_rows(work, node_work().flash);
        const int64_t groups = work * static_cast<double>(step) > node_work().flash ? h.n_head_kv : 1;
        max_nodes += h.n_layer * 12 * groups * (s.n_tokens / step + 1);
    }
    ctx_.reset(ggml_init(
        {.mem_size = max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false),
         .mem_buffer = nullptr,
         .no_alloc = true}));
    ggml_context* ctx = ctx_.get();
    graph = ggml_new_graph_custom(ctx, max_nodes, false);

    tokens = input(GGML_TYPE_I32, s.n_tokens, 1, 1, "tokens");
    if (g.n_layers > 0) {
        positions = input(GGML_TYPE_I32, s.n_tokens, 1, 1, "positions");
        kv_rows = input(GGML_TYPE_I64, s.n_tokens, 1, 1, "kv_rows");
        if (flash) mask = input(GGML_TYPE_F16, s.n_kv, s.n_tokens, 1, "mask");
        if (h.attn_temp_scale != 0.0f) attn_scale = input(GGML_TYPE_F32, 1, 1, s.n_tokens, "attn_scale");
    }
    const bool last_logits = !s.all_logits && !g.ends_hidden;

    ggml_tensor* x = ggml_get_rows(ctx, g.weights->tok_embd, tokens);  // [n_embd, n_tokens]
    for (int64_t il = 0; il < g.n_layers; ++il) {
        const LayerWeights& w = g.weights->layers[il];
        x = ggml_add(ctx, attention(g, il, name(rms_norm(g, x, w.attn_norm), "attn_norm", il)), x);
        const bool last_alone = last_logits && il == g.n_layers - 1;
        ggml_tensor* in = name(rms_norm(g, x, w.ffn_norm), "ffn_norm", il);
        if (last_alone) x = last_token(x);
        x = ggml_add(ctx, feed_forward(g, il, in, last_alone), x);
        name(x, "l_out", il);
    }
    if (g.ends_hidden) {
        hidden = x;
        ggml_set_output(hidden);
        ggml_build_forward_expand(graph, hidden);
        for (ggml_tensor* r : routes) ggml_build_forward_expand(graph, r);
        return;
    }
    x = rms_norm(g, x, g.weights->output_norm);
    int64_t t = 0;
    for (const int64_t n : part_sizes(n_logits, bounded_rows(g.weights->output))) {
        ggml_tensor* rows = n == n_logits ? x : ggml_view_2d(ctx, x, x->ne[0], n, x->nb[1], t * x->nb[1]);
        logits.push_back(name(product(g.weights->output, rows), "logits", t));
        ggml_set_output(logits.back());
        ggml_build_forward_expand(graph, logits.back());
        t += n;
    }
    for (ggml_tensor* r : routes) ggml_build_forward_expand(graph, r);
}

double Graph::bytes(int n_threads) const {
    const ggml_gallocr_ptr measure(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
    size_t size = 0;
    ggml_gallocr_reserve_n_size(measure.get(), graph, nullptr, nullptr, &size);
    return static_cast<double>(size) +
           static_cast<double>(ggml_graph_plan(graph, n_threads, nullptr).work_size);
}

void Graph::allocate(ggml_gallocr* allocator) {
    if (!ggml_gallocr_alloc_graph(allocator, graph))
        throw InsufficientMemory("no memory to compute a batch of " + std::to_string(shape.n_tokens) +
                                 " tokens: use a smaller n_batch");
    // The tiles of activations are read at random; in huge pages the processor does not miss translations.
    ggml_backend_buffer_t buffer = tokens->buffer;
    advise_pages(ggml_backend_buffer_get_base(buffer), ggml_backend_buffer_get_size(buffer), MADV_HUGEPAGE);
}

}  // namespace sardine
