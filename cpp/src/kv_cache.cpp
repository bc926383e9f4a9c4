#include "kv_cache.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <string>

#include "kernels/q8_block.h"
#include "sardine/error.h"

namespace sardine {

ggml_type parse_kv_type(const std::string& name, const HParams& h) {
    if (name == "f16") return GGML_TYPE_F16;
    if (name == "f32") return GGML_TYPE_F32;
    if (name != "q8_0") throw InvalidArgument("kv_type '" + name + "' is unknown, expected f16, f32 or q8_0");
    if (h.head_dim % kQ8Block != 0)
        throw InvalidArgument(
            "kv_type 'q8_0' needs a head dimension that is a multiple of 32, and this model's is " +
            std::to_string(h.head_dim) + ": use f16");
    return GGML_TYPE_Q8_0;
}

KvType kv_type_of(ggml_type type) {
    return type == GGML_TYPE_F16 ? KvType::f16 : type == GGML_TYPE_F32 ? KvType::f32 : KvType::q8_0;
}

double KvCache::bytes(const HParams& h, int64_t n_ctx, ggml_type type, int64_t n_layers) {
    return 2.0 * static_cast<double>(n_layers) * static_cast<double>(ggml_row_size(type, h.n_embd_kv())) *
           static_cast<double>(padded_positions(n_ctx));
}

KvCache::KvCache(const HParams& h, int64_t n_ctx, ggml_type type) : type_(type) {
    ctx_.reset(ggml_init(
        {.mem_size = 2 * h.n_layer * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
    for (int64_t i = 0; i < h.n_layer; ++i)
        for (auto* list : {&k_, &v_})
            list->push_back(ggml_new_tensor_2d(ctx_.get(), type, h.n_embd_kv(), padded_positions(n_ctx)));
    // Measuring counts tensors that have no address yet; this one is never read.
    static char nowhere[32];
    for (auto* list : {&k_, &v_})
        for (ggml_tensor* t : *list) t->data = nowhere;
}

void KvCache::allocate(int64_t first, ggml_backend_buffer_type_t device) {
    const auto n_layer = static_cast<int64_t>(k_.size());
    first = std::min(first, n_layer);
    auto place = [&](int64_t begin, int64_t end, ggml_backend_buffer_type_t type) {
        if (begin >= end) return;
        const size_t alignment = ggml_backend_buft_get_alignment(type);
        auto room = [&](const ggml_tensor* t) {
            return (ggml_backend_buft_get_alloc_size(type, t) + alignment - 1) / alignment * alignment;
        };
        const size_t size = 2 * (end - begin) * room(k_[begin]);
        buffers_.emplace_back(ggml_backend_buft_alloc_buffer(type, size));
        if (!buffers_.back())
            throw InsufficientMemory("no memory for the keys and values of " + std::to_string(k_[0]->ne[1]) +
                                     " tokens");
        auto* at = static_cast<char*>(ggml_backend_buffer_get_base(buffers_.back().get()));
        for (int64_t i = begin; i < end; ++i)
            for (ggml_tensor* t : {k_[i], v_[i]}) {
                t->data = nullptr;
                ggml_backend_tensor_alloc(buffers_.back().get(), t, at);
                at += room(t);
            }
        // Masked positions are multiplied by zero weights, so they must hold numbers.
        ggml_backend_buffer_clear(buffers_.back().get(), 0);
    };
    place(0, first, ggml_backend_cpu_buffer_type());
    place(first, n_layer, device);
}

}  // namespace sardine
