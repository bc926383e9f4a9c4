// What the emulated GPU computes otherwise than ggml's CPU backend, whose products take f16 queries and
// weights of attention, and whose flash attention sums f16 values in f16: here in f32, and other products as
// the CPU's. `rounds`: all of them as ggml-cuda rounds, in the ggml of llama-cpp-python 0.3.36 on compute
// capability 8.6: activations to 8 bits in blocks of 32, f32 factors of batches to TF32, sums of tensor cores
// over f16 to f16. Left out are Q2_K's own blocks, bf16, and that batches multiply offsets of blocks with
// unrounded sums.
#pragma once

#include <ggml-backend.h>

namespace sardine {

// Computes the graph on ggml's CPU backend but for these nodes.
ggml_status compute_as_cuda(ggml_backend* cpu, ggml_cgraph* graph, bool rounds);

}  // namespace sardine
