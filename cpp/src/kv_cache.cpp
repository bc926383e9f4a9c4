#include "kv_cache.h"

#include <ggml-cpu.h>

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

double KvCache::bytes(const HParams& h, int64_t n_ctx, ggml_type type) {
    return 2.0 * static_cast<double>(h.n_layer) * static_cast<double>(ggml_row_size(type, h.n_embd_kv())) *
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

void KvCache::allocate() {
    for (auto* list : {&k_, &v_})
        for (ggml_tensor* t : *list) t->data = nullptr;
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx_.get(), ggml_backend_cpu_buffer_type()));
    if (!buffer_)
        throw InsufficientMemory("no memory for the keys and values of " + std::to_string(k_[0]->ne[1]) +
                                 " tokens");
    // Masked positions are multiplied by zero weights, so they must hold numbers.
    ggml_backend_buffer_clear(buffer_.get(), 0);
}

}  // namespace sardine
