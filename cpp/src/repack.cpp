#include "repack.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "page_advice.h"
#include "parallel.h"
#include "sardine/error.h"
#include "system_memory.h"

namespace sardine {
namespace {

// ggml asks for any operand of a product; this many columns are a prompt's.
constexpr int64_t kProbeTokens = 512;

ggml_context_ptr tensor_context(size_t n) {
    ggml_context_ptr ctx(
        ggml_init({.mem_size = n * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
    if (!ctx) throw InsufficientMemory("no memory for the tensor table");
    return ctx;
}

// The layouts of ggml's CPU backend beside the plain one.
class Layouts {
 public:
    Layouts() : device_(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0)) {
        const auto list = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
            ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
        if (!list) return;
        for (ggml_backend_buffer_type_t* t = list(device_); t && *t; ++t) {
            types_.push_back(*t);
            empty_.emplace_back(ggml_backend_buft_alloc_buffer(*t, 0));
        }
    }

    // The first that multiplies with such a matrix, or null.
    ggml_backend_buffer_type_t of(const ggml_tensor* weight) const {
        for (size_t i = 0; i < types_.size(); ++i) {
            const ggml_context_ptr ctx = tensor_context(3);
            ggml_tensor* w = ggml_new_tensor(ctx.get(), weight->type, GGML_MAX_DIMS, weight->ne);
            ggml_tensor* x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, weight->ne[0], kProbeTokens);
            w->buffer = empty_[i].get();
            if (w->buffer && ggml_backend_dev_supports_op(device_, ggml_mul_mat(ctx.get(), w, x)))
                return types_[i];
        }
        return nullptr;
    }

 private:
    ggml_backend_dev_t device_;
    std::vector<ggml_backend_buffer_type_t> types_;
    std::vector<ggml_backend_buffer_ptr> empty_;  // an empty buffer of each
};

struct Planned {
    const ggml_tensor* from;
    ggml_backend_buffer_type_t type;
    ggml_tensor* tensor = nullptr;
};

[[noreturn]] void refuse(double need, double available) {
    char text[200];
    std::snprintf(
        text, sizeof text,
        "repack needs %.0f bytes more for copies of the weights, but %.0f bytes are available: use the "
        "mapped weights (repack off)",
        need, available);
    throw InsufficientMemory(text);
}

}  // namespace

RepackedWeights::RepackedWeights(const Weights& w, int64_t n_layers, bool output, int n_threads,
                                 const Progress& progress) {
    const Layouts layouts;
    std::vector<Planned> copies;
    auto add = [&](const ggml_tensor* t) {
        if (ggml_backend_buffer_type_t type = layouts.of(t)) copies.push_back({t, type});
    };
    for (int64_t il = 0; il < n_layers; ++il) {
        const LayerWeights& l = w.layers[il];
        for (const ggml_tensor* t : {l.wq, l.wk, l.wv, l.wo, l.ffn_gate, l.ffn_up, l.ffn_down}) add(t);
    }
    if (output) add(w.output);
    n_tensors_ = static_cast<int64_t>(copies.size());
    ctx_ = tensor_context(copies.size() + 1);

    double need = 0;
    for (Planned& c : copies) {
        c.tensor = ggml_new_tensor(ctx_.get(), c.from->type, GGML_MAX_DIMS, c.from->ne);
        ggml_set_name(c.tensor, c.from->name);
        need += static_cast<double>(ggml_backend_buft_get_alloc_size(c.type, c.tensor));
    }
    const auto available = static_cast<double>(available_memory());
    if (need > available) refuse(need, available);

    for (size_t done = 0; done < copies.size(); done += n_threads) {
        if (progress) progress(static_cast<double>(done) / static_cast<double>(copies.size()));
        const size_t n = std::min(copies.size() - done, static_cast<size_t>(n_threads));
        for (size_t i = done; i < done + n; ++i) {
            const Planned& c = copies[i];
            const size_t size = ggml_backend_buft_get_alloc_size(c.type, c.tensor);
            buffers_.emplace_back(ggml_backend_buft_alloc_buffer(c.type, size));
            ggml_backend_buffer_t buffer = buffers_.back().get();
            if (!buffer || ggml_backend_tensor_alloc(
                               buffer, c.tensor, ggml_backend_buffer_get_base(buffer)) != GGML_STATUS_SUCCESS)
                refuse(need - bytes_, static_cast<double>(available_memory()));
            ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            bytes_ += static_cast<double>(ggml_backend_buffer_get_size(buffer));
        }
        parallel_for(static_cast<int64_t>(n), n_threads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Planned& c = copies[done + i];
                ggml_backend_tensor_set(c.tensor, c.from->data, 0, ggml_nbytes(c.from));
            }
        });
    }
    for (const Planned& c : copies) {
        const int64_t most = repacked_tokens(c.type);
        copies_[c.from] = {c.tensor, most};
        // Of a tied output the rows are still read where they are mapped.
        if (most < INT64_MAX || c.from == w.tok_embd) continue;
        mapped_bytes_ += static_cast<double>(ggml_nbytes(c.from));
        // Out of this process's memory; they come back if read.
        advise_pages(c.from->data, ggml_nbytes(c.from), MADV_DONTNEED);
    }
}

ggml_tensor* RepackedWeights::of(ggml_tensor* weight, int64_t n_tokens) const {
    const auto found = copies_.find(weight);
    return found == copies_.end() || n_tokens > found->second.max_tokens ? weight : found->second.tensor;
}

int64_t repacked_tokens(ggml_backend_buffer_type_t layout) {
#if defined(__x86_64__)
    if (std::string_view(ggml_backend_buft_name(layout)) != "AMX") return 16;
#endif
    return INT64_MAX;
}

int64_t repacked_tokens() {
    const ggml_context_ptr ctx = tensor_context(1);
    ggml_backend_buffer_type_t type = Layouts().of(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_Q4_K, 256, 256));
    return type ? repacked_tokens(type) : 0;
}

}  // namespace sardine
