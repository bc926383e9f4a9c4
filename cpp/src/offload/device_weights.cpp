#include "offload/device_weights.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "delta_upload.h"
#include "kv_cache.h"
#include "sardine/error.h"
#include "sardine/session.h"

namespace sardine {
namespace {

using device::DeltaLayout;

// Tensors of one part, copied to the GPU once all are declared.
class Part {
 public:
    explicit Part(size_t n_tensors)
        : ctx(ggml_init(
              {.mem_size = n_tensors * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true})) {}

    ggml_tensor* like(const ggml_tensor* t) {
        if (!t) return nullptr;
        ggml_tensor* out = ggml_dup_tensor(ctx.get(), t);
        ggml_set_name(out, t->name);
        copies_.push_back({out, t->data});
        return out;
    }
    // Bytes that live until copy().
    ggml_tensor* bytes(std::vector<uint8_t> data) {
        ggml_tensor* out = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, static_cast<int64_t>(data.size()));
        held_.push_back(std::move(data));
        copies_.push_back({out, held_.back().data()});
        return out;
    }
    ggml_backend_buffer_ptr copy(const Gpu& gpu, const char* what) {
        ggml_backend_buffer_ptr buffer = gpu.allocate(ctx.get(), what);
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (const auto& [to, from] : copies_) ggml_backend_tensor_set(to, from, 0, ggml_nbytes(to));
        return buffer;
    }

    ggml_context_ptr ctx;

 private:
    std::vector<std::pair<ggml_tensor*, const void*>> copies_;
    std::vector<std::vector<uint8_t>> held_;
};

struct Packed {
    const DeltaMatrix* matrix = nullptr;
    DeltaLayout at;
    ggml_tensor* tensor = nullptr;
};

Packed pack(Part& part, const DeltaMatrix& m, int n_warps, const std::vector<int32_t>& warp_rows) {
    Packed p{&m, DeltaLayout(m, n_warps)};
    if (!m.empty()) p.tensor = part.bytes(device::pack_delta(m, p.at, warp_rows));
    return p;
}

device::Delta view(const Packed& p) {
    if (!p.tensor) return {};
    return device::view_delta(*p.matrix, p.at, static_cast<const uint8_t*>(p.tensor->data));
}

// Packs matrices of one shape for one launch, those without positions left out.
std::vector<Packed> pack_together(Part& part, const std::vector<const DeltaMatrix*>& matrices,
                                  const device::Limits& limits, device::RowsShape& shape) {
    std::vector<const int32_t*> row_ptr;
    int64_t n_positions = 0;
    for (const DeltaMatrix* m : matrices) {
        if (m->empty()) continue;
        row_ptr.push_back(m->row_ptr);
        n_positions += m->n_positions;
    }
    const DeltaMatrix& first = *matrices.front();
    shape = device::rows_shape(limits, std::min(first.block_columns, first.n_cols), n_positions);
    const auto split = device::split_rows(row_ptr, first.n_rows, first.n_blocks, shape.total_warps());
    std::vector<Packed> out;
    size_t next = 0;
    for (const DeltaMatrix* m : matrices)
        out.push_back(
            pack(part, *m, shape.total_warps(), m->empty() ? std::vector<int32_t>{} : split[next++]));
    return out;
}

double tensor_bytes(const ggml_tensor* t) {
    return t ? static_cast<double>(ggml_nbytes(t)) : 0.0;
}

}  // namespace

DeviceWeights::DeviceWeights(const Weights& w, const HParams& h, int64_t first, const Gpu& gpu,
                             const Progress& progress)
    : first_(first), process_(::getpid()) {
    auto keep = [&](Part& part, const char* what) {
        buffers_.push_back(part.copy(gpu, what));
        bytes_ += static_cast<double>(ggml_backend_buffer_get_size(buffers_.back().get()));
        contexts_.push_back(std::move(part.ctx));
    };
    Part ends(3);
    output_norm_ = ends.like(w.output_norm);
    output_ = ends.like(w.output);
    rope_freqs_ = ends.like(w.rope_freqs);
    keep(ends, "the output's weights");

    for (int64_t il = first; il < h.n_layer; ++il) {
        if (progress) progress(static_cast<double>(il - first) / static_cast<double>(h.n_layer - first));
        const LayerWeights& l = w.layers[il];
        Part part(20);
        DeviceLayer to;
        to.base.attn_norm = part.like(l.attn_norm);
        to.base.wq = part.like(l.wq);
        to.base.wk = part.like(l.wk);
        to.base.wv = part.like(l.wv);
        to.base.wo = part.like(l.wo);
        to.base.bq = part.like(l.bq);
        to.base.bk = part.like(l.bk);
        to.base.bv = part.like(l.bv);
        to.base.bo = part.like(l.bo);
        to.base.ffn_norm = part.like(l.ffn_norm);
        to.base.ffn_gate = part.like(l.ffn_gate);
        to.base.ffn_up = part.like(l.ffn_up);
        to.base.ffn_down = part.like(l.ffn_down);
        const std::string what = "the weights of layer " + std::to_string(il);
        if (!l.experts) {
            keep(part, what.c_str());
            layers_.push_back(std::move(to));
            continue;
        }
        const LayerExperts& x = *l.experts;
        to.experts = std::make_unique<DeviceExperts>();
        DeviceExperts& on = *to.experts;
        const int64_t n_experts = x.router->ne[1];
        const ggml_tensor* router = part.like(x.router);
        const auto* mean_bytes = reinterpret_cast<const uint8_t*>(x.mean);
        const ggml_tensor* mean = part.bytes({mean_bytes, mean_bytes + sizeof(float) * n_experts});
        const std::vector<Packed> gate_up =
            pack_together(part, {&x.gate, &x.up}, gpu.kernels().limits(), on.gate_up_shape);
        const std::vector<Packed> down =
            pack_together(part, {&x.down}, gpu.kernels().limits(), on.down_shape);
        keep(part, what.c_str());
        on.router = static_cast<const float*>(router->data);
        on.mean = static_cast<const float*>(mean->data);
        on.n_experts = static_cast<int32_t>(n_experts);
        on.gate = view(gate_up[0]);
        on.up = view(gate_up[1]);
        on.down = view(down[0]);
        layers_.push_back(std::move(to));
    }
}

// As ~DeviceEngine.
DeviceWeights::~DeviceWeights() {
    if (::getpid() == process_) return;
    for (ggml_backend_buffer_ptr& b : buffers_) static_cast<void>(b.release());
}

// Of the row kernel's grid: 32 on each of 256 multiprocessors.
constexpr int kMostWarps = 8192;

double device_layer_bytes(const LayerWeights& l) {
    double n = 0;
    for (const ggml_tensor* t : {l.attn_norm, l.wq, l.wk, l.wv, l.wo, l.bq, l.bk, l.bv, l.bo, l.ffn_norm,
                                 l.ffn_gate, l.ffn_up, l.ffn_down})
        n += tensor_bytes(t);
    if (!l.experts) return n;
    n += tensor_bytes(l.experts->router);
    for (const DeltaMatrix* m : {&l.experts->gate, &l.experts->up, &l.experts->down})
        n += static_cast<double>(DeltaLayout(*m, kMostWarps).bytes);
    return n;
}

double device_output_bytes(const Weights& w) {
    return tensor_bytes(w.output) + tensor_bytes(w.output_norm) + tensor_bytes(w.rope_freqs);
}

double device_scratch_estimate(const HParams& h, const ContextPlan& plan) {
    const auto n = static_cast<double>(std::min(plan.n_batch, plan.n_ctx));
    const double row = 6.0 * static_cast<double>(h.n_ff) + 8.0 * static_cast<double>(h.n_embd) +
                       2.0 * static_cast<double>(h.head_dim * h.n_head + 2 * h.n_embd_kv());
    const auto n_kv = static_cast<double>(padded_positions(plan.n_ctx));
    double attention = 2.0 * n * n_kv;                                  // the mask
    if (plan.kv_type == GGML_TYPE_F32 || !flash_has_heads(h.head_dim))  // scores, weights, values in columns
        attention +=
            8.0 * n * n_kv * static_cast<double>(h.n_head) + 4.0 * n_kv * static_cast<double>(h.n_embd_kv());
    return kGpuWorkspace + 4.0 * n * row + attention + 4.0 * static_cast<double>(h.n_vocab);
}

void check_gpu_weights(const Weights& w, const HParams& h, int64_t n, double free) {
    double need = device_output_bytes(w);
    for (int64_t il = h.n_layer + 1 - n; il < h.n_layer; ++il) need += device_layer_bytes(w.layers[il]);
    if (need <= free) return;
    char text[300];
    std::snprintf(
        text, sizeof text,
        "n_gpu_layers %lld needs %.0f bytes of the GPU's memory for the weights alone, but %.0f bytes "
        "are free: ask for fewer layers, or for n_gpu_layers auto",
        static_cast<long long>(n), need, free);
    throw InsufficientMemory(text);
}

std::pair<int64_t, double> gpu_plan(const Weights& w, const HParams& h, const ContextPlan& plan,
                                    double free) {
    const double budget = free - std::max(free * kAutoMargin, kAutoMarginBytes);
    double need = device_scratch_estimate(h, plan) + device_output_bytes(w);
    if (need > budget) return {0, 0.0};
    for (int64_t n = 1; n <= h.n_layer; ++n) {
        const double more =
            device_layer_bytes(w.layers[h.n_layer - n]) + KvCache::bytes(h, plan.n_ctx, plan.kv_type, 1);
        if (need + more > budget) return {n, need};
        need += more;
    }
    return {h.n_layer + 1, need};
}

}  // namespace sardine
