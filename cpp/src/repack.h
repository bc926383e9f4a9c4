// Copies of weights in the interleaved layouts that ggml multiplies with faster, instead of the mapped ones.
#pragma once

#include <ggml-cpp.h>

#include <vector>

#include "sardine/progress.h"
#include "weights.h"

namespace sardine {

class RepackedWeights {
 public:
    // Points `w` at copies of the matrices of its first n_layers layers, and of the output's if asked for;
    // those whose type this processor has no such layout for stay mapped. The layouts are ggml's, in
    // the order in which libllama prefers them. Throws InsufficientMemory before it copies.
    RepackedWeights(Weights& w, int64_t n_layers, bool output, int n_threads, const Progress& progress = {});

    double bytes() const { return bytes_; }                // allocated
    double mapped_bytes() const { return mapped_bytes_; }  // of the file, no longer read
    int64_t n_tensors() const { return n_tensors_; }

 private:
    ggml_context_ptr ctx_;
    std::vector<ggml_backend_buffer_ptr> buffers_;  // one for each tensor
    double bytes_ = 0, mapped_bytes_ = 0;
    int64_t n_tensors_ = 0;
};

}  // namespace sardine
