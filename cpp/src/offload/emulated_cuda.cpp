#include "offload/emulated_cuda.h"

#include <ggml-cpp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "sardine/error.h"

namespace sardine {
namespace {

constexpr int64_t kBlock = 32;  // activations with one scale
constexpr int64_t kKeys = 64;   // keys between two looks at the maximum
constexpr int64_t kMma = 16;    // products that a tensor core sums before it rounds
// Tokens of ggml-cuda's kernels at most: in f32 of f32 weights, for quantized ones, on tensor cores of its
// own; and rows of f16 keys of several heads.
constexpr int64_t kVectorTokens = 3, kByteVectorTokens = 8, kTileTokens = 16, kVectorRows = 512;
constexpr float kMaxOffset = 3.0f * 0.6931f;
constexpr float kFlushed = -20.0f;  // of exponents that rescale sums

float to_half(float x) {
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(x));
}

template <typename T>
T* at(const ggml_tensor* t, int64_t i1, int64_t i2 = 0, int64_t i3 = 0) {
    return reinterpret_cast<T*>(static_cast<char*>(t->data) + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3]);
}

// One row of any type, widened.
void widen(ggml_type type, const void* row, int64_t n, float* out) {
    if (type == GGML_TYPE_F32)
        std::copy_n(static_cast<const float*>(row), n, out);
    else
        ggml_get_type_traits(type)->to_float(row, out, n);
}

// Types whose blocks have an offset beside the scale: activations then have scales of 16 bits always.
bool has_offsets(ggml_type type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1 ||
           type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K;
}

// x as eight bits and a scale for each block, widened again.
void round_activations(const float* x, int64_t n, bool half_scale, float* out) {
    for (int64_t b = 0; b < n; b += kBlock) {
        const int64_t m = std::min(kBlock, n - b);
        float top = 0.0f;
        for (int64_t i = 0; i < m; ++i) top = std::max(top, std::fabs(x[b + i]));
        const float d = top / 127.0f, stored = half_scale ? to_half(d) : d;
        for (int64_t i = 0; i < m; ++i) out[b + i] = d == 0.0f ? 0.0f : std::round(x[b + i] / d) * stored;
    }
}

float dot(const float* a, const float* b, int64_t n) {
    constexpr int64_t kLanes = 16;
    float sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t j = 0; j < kLanes; ++j) sums[j] += a[i + j] * b[i + j];
    float sum = 0.0f;
    for (; i < n; ++i) sum += a[i] * b[i];
    for (const float s : sums) sum += s;
    return sum;
}

// A tensor core's with sums of 16 bits.
float dot_in_half(const float* a, const float* b, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i += kMma) sum = to_half(sum + dot(a + i, b + i, std::min(kMma, n - i)));
    return sum;
}

// Bits that a tensor core drops of f32 factors.
float to_tf32(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x1000) & ~0x1fffu;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

// As ggml-cuda's kernels for so many tokens round x, and whether they sum in f16.
struct Factors {
    enum { exact, bytes, half, tf32 } as = exact;
    bool sums_half = false;
};
Factors factors_of(const ggml_tensor* node) {
    const ggml_tensor* w = node->src[0];
    const int64_t n = node->src[1]->ne[1];
    if (ggml_is_quantized(w->type)) return {Factors::bytes};
    if (w->type != GGML_TYPE_F16) return {n <= kVectorTokens ? Factors::exact : Factors::tf32};
    const bool precise = node->op_params[0] == GGML_PREC_F32;
    const bool vector = n == 1 && (w->ne[1] <= kVectorRows || w->ne[2] == 1);
    if (vector) return {precise ? Factors::exact : Factors::half, !precise};
    if (n <= kTileTokens) return {Factors::half};
    return precise ? Factors{Factors::tf32} : Factors{Factors::half, true};
}

// Weights times tokens, for each head.
template <bool kRounds>
void product(ggml_tensor* dst, int ith, int nth, void* data) {
    const auto* node = static_cast<const ggml_tensor*>(data);
    const ggml_tensor *w = node->src[0], *x = node->src[1];
    const int64_t n = w->ne[0], n_rows = w->ne[1], n_tokens = x->ne[1], shared = x->ne[2] / w->ne[2];
    const Factors factors = kRounds ? factors_of(node) : Factors{};
    std::vector<float> rounded(n * n_tokens), row(n);
    for (int64_t h = 0; h < x->ne[2]; ++h) {
        for (int64_t t = 0; t < n_tokens; ++t) {
            float* to = rounded.data() + t * n;
            std::copy_n(at<float>(x, t, h), n, to);
            if (factors.as == Factors::bytes)
                round_activations(to, n, n_tokens <= kByteVectorTokens || has_offsets(w->type), to);
            else if (factors.as == Factors::half)
                std::transform(to, to + n, to, to_half);
            else if (factors.as == Factors::tf32)
                std::transform(to, to + n, to, to_tf32);
        }
        for (int64_t r = n_rows * ith / nth; r < n_rows * (ith + 1) / nth; ++r) {
            widen(w->type, at<void>(w, r, h / shared), n, row.data());
            for (int64_t t = 0; t < n_tokens; ++t)
                at<float>(dst, t, h)[r] =
                    (factors.sums_half ? dot_in_half : dot)(row.data(), rounded.data() + t * n, n);
        }
    }
}

// One head of one token: scores and weights [n], values [n][dim].
struct Head {
    int64_t n, dim;
    const float* values;
    float* weights;
};

// The tensor cores': `parts` warps share the keys, each with sums of its own in f16.
void weigh_in_half(const Head& h, int64_t parts, float* out) {
    std::vector<float> sums(parts * h.dim), group(h.dim);
    float top = -std::numeric_limits<float>::max() / 2.0f, total = 0.0f;
    for (int64_t p = 0; p < h.n; p += kKeys * parts) {
        const int64_t m = std::min(kKeys * parts, h.n - p);
        float new_top = top;
        for (int64_t i = p; i < p + m; ++i) new_top = std::max(new_top, h.weights[i] + kMaxOffset);
        const float shrink = top - new_top >= kFlushed ? std::exp(top - new_top) : 0.0f;
        top = new_top;
        total *= shrink;
        for (float& s : sums) s = to_half(s * to_half(shrink));
        for (int64_t g = p; g < p + m; g += kMma) {
            std::fill(group.begin(), group.end(), 0.0f);
            for (int64_t i = g; i < std::min(g + kMma, p + m); ++i) {
                const float weight = std::exp(h.weights[i] - top);
                total += weight;
                const float half = to_half(weight);
                for (int64_t c = 0; c < h.dim; ++c) group[c] += half * h.values[i * h.dim + c];
            }
            float* s = sums.data() + g / kMma % parts * h.dim;
            for (int64_t c = 0; c < h.dim; ++c) s[c] = to_half(s[c] + group[c]);
        }
    }
    for (int64_t c = 0; c < h.dim; ++c) {
        float sum = 0.0f;
        for (int64_t i = 0; i < parts; ++i) sum += sums[i * h.dim + c];
        out[c] = sum / total;
    }
}

// The vector kernel's.
void weigh(const Head& h, float* out) {
    float top = -std::numeric_limits<float>::max() / 2.0f, total = 0.0f;
    for (int64_t i = 0; i < h.n; ++i) top = std::max(top, h.weights[i]);
    std::fill_n(out, h.dim, 0.0f);
    for (int64_t i = 0; i < h.n; ++i) {
        const float weight = std::exp(h.weights[i] - top);
        total += weight;
        for (int64_t c = 0; c < h.dim; ++c) out[c] += weight * h.values[i * h.dim + c];
    }
    for (int64_t c = 0; c < h.dim; ++c) out[c] /= total;
}

// Whether ggml-cuda takes its vector kernel, which sums in f32: for one token, unless heads that share keys
// can go together. Tensors whose rows lie at odd places cannot.
bool uses_vector_kernel(const ggml_tensor* node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *mask = node->src[3];
    if (q->ne[1] > 1 || q->ne[0] % 64 != 0 || q->ne[0] > 256 || k->ne[1] % 256 != 0) return false;
    if (ggml_is_quantized(k->type)) return true;
    bool shared = q->ne[2] / k->ne[2] >= 2 && mask;
    for (const ggml_tensor* t : {q, k, static_cast<const ggml_tensor*>(node->src[2]), mask})
        for (int i = 1; t && i < GGML_MAX_DIMS; ++i) shared = shared && t->nb[i] % 16 == 0;
    return !shared;
}

template <bool kRounds>
void flash_attention(ggml_tensor* dst, int ith, int nth, void* data) {
    const auto* node = static_cast<const ggml_tensor*>(data);
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
    const int64_t dim = q->ne[0], n_tokens = q->ne[1], n_heads = q->ne[2], n_kv = k->ne[1];
    const int64_t shared = n_heads / k->ne[2];
    float scale;
    std::memcpy(&scale, node->op_params, sizeof scale);
    const bool vector = !kRounds || uses_vector_kernel(node);
    const bool quantized = kRounds && ggml_is_quantized(k->type);
    std::vector<float> query(dim), keys(n_kv * dim), values(n_kv * dim), weights(n_kv);
    const int64_t parts = n_tokens == 1 ? 4 : 1;
    for (int64_t h = n_heads * ith / nth; h < n_heads * (ith + 1) / nth; ++h) {
        for (int64_t p = 0; p < n_kv; ++p) {
            widen(k->type, at<void>(k, p, h / shared), dim, keys.data() + p * dim);
            widen(v->type, at<void>(v, p, h / shared), dim, values.data() + p * dim);
        }
        if (!vector) {  // tensor cores read f16
            std::transform(keys.begin(), keys.end(), keys.begin(), to_half);
            std::transform(values.begin(), values.end(), values.begin(), to_half);
        }
        for (int64_t t = 0; t < n_tokens; ++t) {
            std::transform(at<float>(q, t, h), at<float>(q, t, h) + dim, query.begin(),
                           [&](float x) { return vector ? x * scale : to_half(x * scale); });
            if (vector && quantized) round_activations(query.data(), dim, false, query.data());
            for (int64_t p = 0; p < n_kv; ++p)
                weights[p] = dot(query.data(), keys.data() + p * dim, dim) +
                             ggml_fp16_to_fp32(at<ggml_fp16_t>(mask, t)[p]);
            const Head head{.n = n_kv, .dim = dim, .values = values.data(), .weights = weights.data()};
            float* out = at<float>(dst, h, t);
            if (vector)
                weigh(head, out);
            else
                weigh_in_half(head, parts, out);
        }
    }
}

// Null: as ggml's CPU backend computes it.
ggml_custom_op_t as_cuda(const ggml_tensor* node, bool rounds) {
    if (node->op == GGML_OP_FLASH_ATTN_EXT) return rounds ? flash_attention<true> : flash_attention<false>;
    if (node->op != GGML_OP_MUL_MAT) return nullptr;
    if (rounds) return product<true>;
    const bool attention = node->src[1]->ne[2] > 1;  // of f16, which the CPU backend has queries in
    return attention ? product<false> : nullptr;
}

}  // namespace

ggml_status compute_as_cuda(ggml_backend* cpu, ggml_cgraph* graph, bool rounds) {
    const int n = ggml_graph_n_nodes(graph);
    const ggml_context_ptr ctx(
        ggml_init({.mem_size = (n + 1) * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
    if (!ctx) throw InsufficientMemory("no memory for the emulated GPU");
    ggml_tensor** nodes = ggml_graph_nodes(graph);
    const std::vector<ggml_tensor*> kept(nodes, nodes + n);
    std::vector<ggml_tensor*> ours = kept;
    for (int i = 0; i < n; ++i) {
        ggml_tensor* t = kept[i];
        const ggml_custom_op_t f = as_cuda(t, rounds);
        if (!f) continue;
        const ggml_tensor* next = i + 1 < n ? kept[i + 1] : nullptr;
        if (t->op == GGML_OP_MUL_MAT && next && next->op == GGML_OP_ADD && next->src[0] == t &&
            next->op_params[0] != t->op_params[0])
            throw Error("a sum has another precision than its product, which ggml-cuda computes with it");
        // Another node over the same memory: what reads the first one's data finds the second one's.
        ours[i] = ggml_custom_4d(ctx.get(), t->type, t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->src, 2, f,
                                 GGML_N_TASKS_MAX, t);
        ours[i]->data = t->data;
        ours[i]->buffer = t->buffer;
        ours[i]->flags = t->flags;
    }
    std::copy(ours.begin(), ours.end(), nodes);
    const ggml_status status = ggml_backend_graph_compute(cpu, graph);
    std::copy(kept.begin(), kept.end(), nodes);
    return status;
}

}  // namespace sardine
