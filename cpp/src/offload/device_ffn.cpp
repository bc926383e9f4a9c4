// The feed-forward of a layer with experts: what is launched between ggml's graphs, and where the graphs are
// cut.
#include <algorithm>

#include "offload/device_program.h"

namespace sardine {
namespace {

float* floats(const ggml_tensor* t) {
    return t ? static_cast<float*>(t->data) : nullptr;
}

}  // namespace

// A layer's feed-forward: what acts in it, and where its parts lie.
struct DeviceProgram::Ffn {
    const LayerWeights& w;
    const DeviceExperts& x;
    bool route, sparse, gain;  // whether the router runs; whether experts change matrices, or the output
    const float* routes;
    float* logits;

    // Whether something is added to a matrix's product.
    bool acts(const device::Delta& d) const { return d.n_rows > 0 && (sparse || d.shared.data); }
};

bool DeviceProgram::has_launches(int64_t il) const {
    const DeviceExperts* x = c_->weights->layer(il).experts.get();
    return x && (routes || x->gate.shared.data || x->up.shared.data || x->down.shared.data);
}

void DeviceProgram::launch_route(const Ffn& f) {
    device::RouteArgs a;
    a.router = f.x.router;
    a.x = floats(ffn_in_);
    a.x_stride = c_->hparams->n_embd;
    a.n_tokens = static_cast<int32_t>(shape.n_tokens);
    a.n_cols = static_cast<int32_t>(c_->hparams->n_embd);
    a.n_experts = f.x.n_experts;
    a.k = static_cast<int32_t>(c_->k);
    a.bias = c_->bias;
    a.forced = c_->forced;
    a.mean = f.x.mean;
    a.routes = const_cast<float*>(f.routes);
    a.gain = f.gain ? floats(gain_) : nullptr;
    a.logits = f.logits;
    launch([a](device::Device& d) { return d.route(a); });
}

// In place on y; `routes` null: the shared part alone.
void DeviceProgram::launch_tiles(const device::Delta& delta, const ggml_tensor* x, ggml_tensor* y,
                                 const float* routes) {
    const auto n = static_cast<int32_t>(shape.n_tokens), k = static_cast<int32_t>(routes ? c_->k : 0);
    const int32_t n_tiles =
        static_cast<int32_t>(routes ? tiles_->ne[1] : (n + device::kTileTokens - 1) / device::kTileTokens);
    device::TilesArgs a{.delta = delta,
                        .y = floats(y),
                        .x = floats(x),
                        .x_stride = x->ne[0],
                        .n_tokens = n,
                        .n_tiles = n_tiles,
                        .k = k,
                        .j = 0,
                        .routes = routes,
                        .tokens = nullptr,
                        .tiles = nullptr,
                        .stage_columns = 0};
    for (; a.j < std::max(k, 1); ++a.j) {
        if (routes) {
            a.tokens = static_cast<const int32_t*>(tokens_->data) + static_cast<int64_t>(a.j) * n;
            a.tiles = static_cast<const device::Tile*>(tiles_->data) + static_cast<int64_t>(a.j) * n_tiles;
        }
        launch([a](device::Device& d) { return d.delta_tiles(a); });
    }
}

// Few tokens: deltas first, as biases of the products.
ggml_tensor* DeviceProgram::with_rows(const Ffn& f) {
    ggml_context* ctx = ctx_.get();
    const float* routes = f.sparse ? f.routes : nullptr;
    auto rows = [&](const ggml_tensor* x) {
        device::RowsArgs a;
        a.n_matrices = 0;
        a.x = floats(x);
        a.x_stride = x->ne[0];
        a.n_tokens = static_cast<int32_t>(shape.n_tokens);
        a.k = static_cast<int32_t>(routes ? c_->k : 0);
        a.routes = routes;
        return a;
    };
    auto add = [](device::RowsArgs& a, const device::Delta& d, ggml_tensor* y) {
        a.delta[a.n_matrices] = d;
        a.y[a.n_matrices++] = floats(y);
    };
    device::RowsArgs both = rows(ffn_in_);
    const bool gate_acts = f.acts(f.x.gate), up_acts = f.acts(f.x.up), down_acts = f.acts(f.x.down);
    if (gate_acts) add(both, f.x.gate, gate_);
    if (up_acts) add(both, f.x.up, up_);
    if (both.n_matrices > 0)
        launch([both, s = f.x.gate_up_shape](device::Device& d) { return d.delta_rows(both, s); });
    next_graph();
    ggml_tensor* gate = linear(f.w.ffn_gate, gate_acts ? gate_ : nullptr, ffn_in_);
    ggml_tensor* up = linear(f.w.ffn_up, up_acts ? up_ : nullptr, ffn_in_);
    ggml_tensor* hidden = ggml_swiglu_split(ctx, gate, up);
    if (!down_acts) {
        ggml_tensor* y = product(f.w.ffn_down, hidden);
        return sum(f.gain ? ggml_mul(ctx, y, gain_) : y, residual_);
    }
    store(hidden, hidden_ffn_);
    device::RowsArgs one = rows(hidden_ffn_);
    add(one, f.x.down, down_);
    one.base = f.gain ? nullptr : floats(residual_);  // the residual comes with the bias
    launch([one, s = f.x.down_shape](device::Device& d) { return d.delta_rows(one, s); });
    next_graph();
    ggml_tensor* y = linear(f.w.ffn_down, down_, hidden_ffn_);
    return f.gain ? sum(ggml_mul(ctx, y, gain_), residual_) : y;
}

// Many tokens: products first, deltas added to them in place.
ggml_tensor* DeviceProgram::with_tiles(const Ffn& f) {
    ggml_context* ctx = ctx_.get();
    const float* routes = f.sparse ? f.routes : nullptr;
    const bool gate_acts = f.acts(f.x.gate), up_acts = f.acts(f.x.up), down_acts = f.acts(f.x.down);
    if (routes && (gate_acts || up_acts || down_acts)) {
        const device::GroupArgs a{.routes = routes,
                                  .n_tokens = static_cast<int32_t>(shape.n_tokens),
                                  .n_experts = f.x.n_experts,
                                  .k = static_cast<int32_t>(c_->k),
                                  .tokens = static_cast<int32_t*>(tokens_->data),
                                  .tiles = static_cast<device::Tile*>(tiles_->data)};
        launch([a](device::Device& d) { return d.group(a); });
    }
    next_graph();
    ggml_tensor* gate = product(f.w.ffn_gate, ffn_in_);
    ggml_tensor* up = product(f.w.ffn_up, ffn_in_);
    if (gate_acts || up_acts) {
        store(gate, gate_);
        store(up, up_);
        if (gate_acts) launch_tiles(f.x.gate, ffn_in_, gate_, routes);
        if (up_acts) launch_tiles(f.x.up, ffn_in_, up_, routes);
        next_graph();
        gate = gate_;
        up = up_;
    }
    ggml_tensor* hidden = ggml_swiglu_split(ctx, gate, up);
    if (down_acts) store(hidden, hidden_ffn_);
    ggml_tensor* y = product(f.w.ffn_down, hidden);
    if (down_acts) {
        store(y, down_);
        launch_tiles(f.x.down, hidden_ffn_, down_, routes);
        next_graph();
        y = down_;
    }
    return sum(f.gain ? ggml_mul(ctx, y, gain_) : y, residual_);
}

// docs/format.md, "What is computed"; h is the residual, and part of what comes back.
ggml_tensor* DeviceProgram::feed_forward(int64_t il, ggml_tensor* h) {
    ggml_context* ctx = ctx_.get();
    const DeviceLayer& layer = c_->weights->layer(il);
    const LayerWeights& w = layer.base;
    ggml_tensor* x = rms_norm(h, w.ffn_norm);
    auto plain = [&] {
        ggml_tensor* gate = product(w.ffn_gate, x);
        ggml_tensor* hidden = ggml_swiglu_split(ctx, gate, product(w.ffn_up, x));
        ggml_tensor* y = sum(product(w.ffn_down, hidden), h);
        if (shape.n_tokens <= kRowsTokens) return y;
        // A batch can be stopped between layers: one graph each.
        store(y, this->hidden);
        next_graph();
        return this->hidden;
    };
    if (!has_launches(il)) return plain();
    const bool route = routes != nullptr;
    const int64_t at = n_routed_++;
    const Ffn f{.w = w,
                .x = *layer.experts,
                .route = route,
                .sparse = route && c_->mode == DeltaMode::sparse,
                .gain = route && c_->mode == DeltaMode::gain,
                .routes = route ? floats(routes) + at * routes->ne[0] * routes->ne[1] : nullptr,
                .logits = router_logits
                              ? floats(router_logits) + at * router_logits->ne[0] * router_logits->ne[1]
                              : nullptr};
    store(h, residual_);
    store(x, ffn_in_);
    if (route) launch_route(f);
    return shape.n_tokens <= kRowsTokens ? with_rows(f) : with_tiles(f);
}

}  // namespace sardine
