// Copies of weights in the interleaved layouts that ggml multiplies few tokens with faster, beside the mapped
// ones.
#pragma once

#include <ggml-cpp.h>

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sardine/progress.h"
#include "weights.h"

namespace sardine {

// Tokens of a batch that is multiplied with copies in this layout, at most. On x86 ggml's products of more
// are faster with the plain layout: 1.2 times with 32 tokens, 1.4 with 64, 1.8 with 128
// (docs/performance.md); but for AMX, which is for many.
int64_t repacked_tokens(ggml_backend_buffer_type_t layout);
// The same of the layout that this processor has for Q4_K, 0 without one.
int64_t repacked_tokens();

class RepackedWeights {
 public:
    // Copies the matrices of the first n_layers layers, and the output's if asked for, but for those whose
    // type this processor has no such layout for. The layouts are ggml's, in the order in which libllama
    // prefers them. Throws InsufficientMemory before it copies.
    RepackedWeights(const Weights& w, int64_t n_layers, bool output, int n_threads,
                    const Progress& progress = {});

    // What a batch of n_tokens is multiplied with: the copy of `weight`, or `weight`.
    ggml_tensor* of(ggml_tensor* weight, int64_t n_tokens) const;

    double bytes() const { return bytes_; }                // allocated
    double mapped_bytes() const { return mapped_bytes_; }  // of the file, no longer read
    int64_t n_tensors() const { return n_tensors_; }

 private:
    ggml_context_ptr ctx_;
    std::vector<ggml_backend_buffer_ptr> buffers_;  // one for each tensor
    struct Copy {
        ggml_tensor* tensor;
        int64_t max_tokens;
    };
    std::unordered_map<const ggml_tensor*, Copy> copies_;  // by the mapped ones
    double bytes_ = 0, mapped_bytes_ = 0;
    int64_t n_tensors_ = 0;
};

}  // namespace sardine
