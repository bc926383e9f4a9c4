#include "kv_cache.h"

#include <ggml-cpu.h>

#include <cstdio>
#include <string>

#include "sardine/error.h"
#include "system_memory.h"

namespace sardine {

// In double: a request may exceed any integer.
double KvCache::bytes(const HParams& h, int64_t n_ctx, ggml_type type) {
    return 2.0 * static_cast<double>(h.n_layer) * static_cast<double>(ggml_row_size(type, h.n_embd_kv())) *
           static_cast<double>(padded_positions(n_ctx));
}

KvCache::KvCache(const HParams& h, int64_t n_ctx, ggml_type type) : type_(type) {
    const double needed = bytes(h, n_ctx, type);
    const auto available = static_cast<double>(available_memory());
    if (needed > available) {
        char text[200];
        std::snprintf(text, sizeof text,
                      "n_ctx %lld needs %.0f bytes for keys and values, but %.0f bytes are available: "
                      "ask for a smaller n_ctx",
                      static_cast<long long>(n_ctx), needed, available);
        throw InsufficientMemory(text);
    }
    ctx_.reset(ggml_init(
        {.mem_size = 2 * h.n_layer * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
    for (int64_t i = 0; i < h.n_layer; ++i) {
        k_.push_back(ggml_new_tensor_2d(ctx_.get(), type, h.n_embd_kv(), padded_positions(n_ctx)));
        v_.push_back(ggml_new_tensor_2d(ctx_.get(), type, h.n_embd_kv(), padded_positions(n_ctx)));
    }
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx_.get(), ggml_backend_cpu_buffer_type()));
    if (!buffer_)
        throw InsufficientMemory("no memory for the keys and values of " + std::to_string(n_ctx) + " tokens");
    // Masked positions are multiplied by zero weights, so they must hold numbers.
    ggml_backend_buffer_clear(buffer_.get(), 0);
}

}  // namespace sardine
