#include "weights.h"

#include <ggml-cpu.h>

#include <cmath>
#include <initializer_list>
#include <optional>
#include <set>

#include "adapter.h"

namespace sardine {
namespace {

std::string shape_text(std::initializer_list<int64_t> ne) {
    std::string s = "[";
    for (const int64_t n : ne) s += (s.size() > 1 ? ", " : "") + std::to_string(n);
    return s + "]";
}

std::string shape_text(const GgufTensor& t) {
    std::string s = "[";
    for (int d = 0; d < t.n_dims; ++d) s += (d ? ", " : "") + std::to_string(t.ne[d]);
    return s + "]";
}

std::string layer_prefix(int64_t il) {
    return "blk." + std::to_string(il) + ".";
}

class Loader {
 public:
    Loader(const GgufFile& file, TensorViews& w) : file_(file) {
        w.ctx.reset(ggml_init({.mem_size = (file.tensors().size() + 1) * ggml_tensor_overhead(),
                               .mem_buffer = nullptr,
                               .no_alloc = true}));
        // ggml never writes to weights; the mapping itself is read-only.
        auto* data = const_cast<uint8_t*>(file.bytes().data()) + file.data_offset();
        // A file without tensors may end before its padding.
        const size_t size = file.bytes().size() - std::min(file.bytes().size(), file.data_offset());
        w.buffer.reset(ggml_backend_cpu_buffer_from_ptr(data, size));
        if (!w.ctx || !w.buffer) throw InsufficientMemory("no memory for the tensor table");
        ggml_backend_buffer_set_usage(w.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ctx_ = w.ctx.get();
        buffer_ = w.buffer.get();
    }

    bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

    const GgufTensor& require(const std::string& name, std::initializer_list<int64_t> ne) {
        const GgufTensor* t = file_.find_tensor(name);
        if (!t) file_.fail(name, "tensor '" + name + "' is missing");
        bool same = true;
        int d = 0;
        for (const int64_t n : ne) same &= t->ne[d++] == n;
        for (; d < 4; ++d) same &= t->ne[d] == 1;
        if (!same)
            file_.fail(name,
                       "tensor '" + name + "' has shape " + shape_text(*t) + ", expected " + shape_text(ne));
        used_.insert(t->name);
        return *t;
    }

    const GgufTensor& require(const std::string& name, std::initializer_list<int64_t> ne, ggml_type type) {
        const GgufTensor& t = require(name, ne);
        if (t.type != type)
            file_.fail(name, "tensor '" + name + "' has type " + type_name(t) + ", expected " +
                                 ggml_type_name(type));
        return t;
    }

    // A matrix that ggml multiplies with.
    ggml_tensor* matrix(const std::string& name, std::initializer_list<int64_t> ne) {
        const GgufTensor& t = require(name, ne);
        const auto* traits = ggml_get_type_traits_cpu(static_cast<ggml_type>(t.type));
        if (!traits->vec_dot || !ggml_get_type_traits(static_cast<ggml_type>(t.type))->to_float)
            if (t.type != GGML_TYPE_F32)
                file_.fail(name,
                           "tensor '" + name + "' has type " + type_name(t) + ", which is no weight type");
        return view(t);
    }

    ggml_tensor* vector(const std::string& name, int64_t n) {
        return view(require(name, {n}, GGML_TYPE_F32));
    }
    ggml_tensor* optional_vector(const std::string& name, int64_t n) {
        return has(name) ? vector(name, n) : nullptr;
    }

    ggml_tensor* view(const GgufTensor& t) {
        ggml_tensor* out = ggml_new_tensor(ctx_, static_cast<ggml_type>(t.type), t.n_dims, t.ne);
        ggml_set_name(out, t.name.c_str());
        ggml_backend_tensor_alloc(buffer_, out, const_cast<uint8_t*>(file_.data(t)));
        return out;
    }

    const float* finite_floats(const GgufTensor& t) {
        const auto* v = reinterpret_cast<const float*>(file_.data(t));
        for (uint64_t i = 0; i < t.nbytes / sizeof(float); ++i)
            if (!std::isfinite(v[i]))
                file_.fail(t.name,
                           "tensor '" + t.name + "' has a value that is not finite at " + std::to_string(i));
        return v;
    }

    void refuse_unknown() const {
        for (const GgufTensor& t : file_.tensors())
            if (!used_.contains(t.name))
                file_.fail(t.name, "tensor '" + t.name +
                                       "' is not part of this model: the file is of another kind, "
                                       "or sardine.layers does not list its layer");
    }

    static std::string type_name(const GgufTensor& t) {
        return ggml_type_name(static_cast<ggml_type>(t.type));
    }
    const GgufFile& file() const { return file_; }

 private:
    const GgufFile& file_;
    ggml_context* ctx_;
    ggml_backend_buffer* buffer_;
    std::set<std::string, std::less<>> used_;
};

// Values of n positions, `count` arrays of them side by side; the caller sets the scale.
DeltaValues load_values(Loader& in, const std::string& name, int64_t n, int64_t count) {
    const GgufFile& f = in.file();
    const GgufTensor* t = f.find_tensor(name);
    if (!t) f.fail(name, "tensor '" + name + "' is missing");
    DeltaValues v;
    switch (t->type) {
        case GGML_TYPE_F32:
            v.type = ValueType::f32;
            break;
        case GGML_TYPE_F16:
            v.type = ValueType::f16;
            break;
        case GGML_TYPE_Q8_0:
            v.type = ValueType::q8_0;
            n = (n + 31) / 32 * 32;
            break;
        default:
            f.fail(name,
                   "tensor '" + name + "' has type " + Loader::type_name(*t) + ", expected f32, f16 or q8_0");
    }
    in.require(name, {n, count});
    v.data = f.data(*t);
    return v;
}

DeltaMatrix load_delta(Loader& in, const std::string& prefix, int64_t n_rows, int64_t n_cols,
                       const ExpertParams& e, int n_threads) {
    DeltaMatrix m{.n_rows = n_rows, .n_cols = n_cols};
    m.block_columns = e.block_columns;
    m.n_blocks = (n_cols + m.block_columns - 1) / m.block_columns;
    m.n_experts = static_cast<int32_t>(e.expert_count);
    const GgufFile& f = in.file();
    const std::string col = prefix + ".col";
    bool any = false;
    for (const char* part : {".row_ptr", ".col", ".val", ".scale", ".shared", ".shared_scale"})
        any |= in.has(prefix + part);
    if (!any) return m;

    const GgufTensor& rows = in.require(prefix + ".row_ptr", {m.n_blocks * n_rows + 1}, GGML_TYPE_I32);
    const GgufTensor* cols = f.find_tensor(col);
    if (!cols) f.fail(col, "tensor '" + col + "' is missing");
    m.n_positions = cols->ne[0];
    if (m.n_positions > INT32_MAX || m.n_positions > n_rows * n_cols)
        f.fail(col, "tensor '" + col + "' has " + std::to_string(m.n_positions) +
                        " positions, more than the matrix");
    in.require(col, {m.n_positions}, GGML_TYPE_I16);

    const DeltaValues values = load_values(in, prefix + ".val", m.n_positions, m.n_experts);
    m.type = values.type;
    m.val = values.data;
    m.val_stride = f.find_tensor(prefix + ".val")->nbytes / m.n_experts;
    m.row_ptr = reinterpret_cast<const int32_t*>(f.data(rows));
    m.col = reinterpret_cast<const uint16_t*>(f.data(*cols));
    m.scale =
        reinterpret_cast<const float*>(f.data(in.require(prefix + ".scale", {m.n_experts}, GGML_TYPE_F32)));
    if (e.has_shared) {
        m.shared = load_values(in, prefix + ".shared", m.n_positions, 1);
        const GgufTensor& scale = in.require(prefix + ".shared_scale", {1}, GGML_TYPE_F32);
        m.shared.scale = *reinterpret_cast<const float*>(f.data(scale));
    }
    validate_delta(m, n_threads, [&](const char* part, const std::string& what) {
        f.fail(prefix + "." + part, "tensor '" + prefix + "." + part + "': " + what);
    });
    return m;
}

std::unique_ptr<LayerExperts> load_experts(Loader& in, const std::string& layer, const HParams& h,
                                           const ExpertParams& e, int n_threads, const StopPoint& stop) {
    auto x = std::make_unique<LayerExperts>();
    const auto n_expert = static_cast<int64_t>(e.expert_count);
    const GgufTensor& router = in.require(layer + "ffn_gate_inp.weight", {h.n_embd, n_expert}, GGML_TYPE_F32);
    in.finite_floats(router);
    x->router = in.view(router);
    x->mean = in.finite_floats(in.require(layer + "ffn_delta.mean", {n_expert}, GGML_TYPE_F32));
    auto delta = [&](const char* name, int64_t n_rows, int64_t n_cols) {
        if (stop) stop();
        in.file().check_unchanged();
        return load_delta(in, layer + name, n_rows, n_cols, e, n_threads);
    };
    x->gate = delta("ffn_gate_delta", h.n_ff, h.n_embd);
    x->up = delta("ffn_up_delta", h.n_ff, h.n_embd);
    x->down = delta("ffn_down_delta", h.n_embd, h.n_ff);
    return x;
}

// Progress over the three matrices of every layer with experts.
class LayerSteps {
 public:
    LayerSteps(const ExpertParams& e, const Progress& progress)
        : n_(3.0 * static_cast<double>(e.layers.size())), progress_(progress) {}
    StopPoint stop() {
        if (!progress_) return {};
        return [this] { progress_(done_++ / n_); };
    }

 private:
    double n_, done_ = 0;
    const Progress& progress_;
};

LayerWeights load_layer(Loader& in, const std::string& p, const HParams& h) {
    LayerWeights l;
    const int64_t n_q = h.head_dim * h.n_head, n_kv = h.n_embd_kv();
    l.attn_norm = in.vector(p + "attn_norm.weight", h.n_embd);
    l.wq = in.matrix(p + "attn_q.weight", {h.n_embd, n_q});
    l.wk = in.matrix(p + "attn_k.weight", {h.n_embd, n_kv});
    l.wv = in.matrix(p + "attn_v.weight", {h.n_embd, n_kv});
    l.wo = in.matrix(p + "attn_output.weight", {n_q, h.n_embd});
    l.bq = in.optional_vector(p + "attn_q.bias", n_q);
    l.bk = in.optional_vector(p + "attn_k.bias", n_kv);
    l.bv = in.optional_vector(p + "attn_v.bias", n_kv);
    l.bo = in.optional_vector(p + "attn_output.bias", h.n_embd);
    l.ffn_norm = in.vector(p + "ffn_norm.weight", h.n_embd);
    l.ffn_gate = in.matrix(p + "ffn_gate.weight", {h.n_embd, h.n_ff});
    l.ffn_up = in.matrix(p + "ffn_up.weight", {h.n_embd, h.n_ff});
    l.ffn_down = in.matrix(p + "ffn_down.weight", {h.n_ff, h.n_embd});
    return l;
}

}  // namespace

Weights load_weights(const GgufFile& file, const GgufFile* adapter, const HParams& h, const ExpertParams& e,
                     int n_threads, const Progress& progress) {
    if (progress) progress(0.0);
    Weights w;
    Loader in(file, w.views);
    w.tok_embd = in.matrix("token_embd.weight", {h.n_embd, h.n_vocab});
    w.output_norm = in.vector("output_norm.weight", h.n_embd);
    w.output = in.has("output.weight") ? in.matrix("output.weight", {h.n_embd, h.n_vocab}) : w.tok_embd;
    w.rope_freqs = in.optional_vector("rope_freqs.weight", h.head_dim / 2);
    w.layers.reserve(h.n_layer);
    for (int64_t i = 0; i < h.n_layer; ++i) w.layers.push_back(load_layer(in, layer_prefix(i), h));

    std::optional<Loader> other;
    if (adapter) other.emplace(*adapter, w.adapter_views);
    Loader& from = other ? *other : in;
    LayerSteps steps(e, progress);
    for (const uint32_t i : e.layers)
        w.layers[i].experts = load_experts(from, layer_prefix(i), h, e, n_threads, steps.stop());
    in.refuse_unknown();
    if (other) other->refuse_unknown();
    return w;
}

void check_adapter(const GgufFile& adapter, int n_threads, const Progress& progress) {
    const HParams h = read_adapter_shape(adapter);
    const ExpertParams e = read_expert_params(adapter, h);
    TensorViews views;
    Loader in(adapter, views);
    LayerSteps steps(e, progress);
    for (const uint32_t i : e.layers) load_experts(in, layer_prefix(i), h, e, n_threads, steps.stop());
    in.refuse_unknown();
}

}  // namespace sardine
