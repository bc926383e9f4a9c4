// Every tensor of a file (and of an adapter): checked against the name, type and shape expected, and viewed
// in place by ggml.
#pragma once

#include <ggml-cpp.h>

#include <memory>
#include <vector>

#include "delta_pack.h"
#include "gguf_file.h"
#include "hparams.h"
#include "sardine/progress.h"

namespace sardine {

// Shapes are ggml's ne. Optional tensors are null when absent.
struct LayerExperts {
    ggml_tensor* router = nullptr;  // [n_embd, n_expert] f32
    const float* mean = nullptr;    // [n_expert]
    DeltaMatrix gate, up, down;
};

struct LayerWeights {
    ggml_tensor* attn_norm = nullptr;  // [n_embd]
    ggml_tensor* wq = nullptr;         // [n_embd, head_dim * n_head]
    ggml_tensor* wk = nullptr;         // [n_embd, head_dim * n_head_kv]
    ggml_tensor* wv = nullptr;         // [n_embd, head_dim * n_head_kv]
    ggml_tensor* wo = nullptr;         // [head_dim * n_head, n_embd]
    ggml_tensor* bq = nullptr;         // optional biases, as libllama reads them for arch llama
    ggml_tensor* bk = nullptr;
    ggml_tensor* bv = nullptr;
    ggml_tensor* bo = nullptr;
    ggml_tensor* ffn_norm = nullptr;        // [n_embd]
    ggml_tensor* ffn_gate = nullptr;        // [n_embd, n_ff]
    ggml_tensor* ffn_up = nullptr;          // [n_embd, n_ff]
    ggml_tensor* ffn_down = nullptr;        // [n_ff, n_embd]
    std::unique_ptr<LayerExperts> experts;  // null in a layer of the base alone
};

// Keeps the views of one file alive; the file must outlive them.
struct TensorViews {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
};

struct Weights {
    ggml_tensor* tok_embd = nullptr;     // [n_embd, n_vocab]
    ggml_tensor* output_norm = nullptr;  // [n_embd]
    ggml_tensor* output = nullptr;       // [n_embd, n_vocab]; tok_embd when tied
    ggml_tensor* rope_freqs = nullptr;   // [head_dim / 2], optional
    std::vector<LayerWeights> layers;

    TensorViews views, adapter_views;
};

// The experts are those of `adapter`, or of `file` where it is null. `n_threads` is for the scan of their
// indices and values. `progress` is asked between them.
Weights load_weights(const GgufFile& file, const GgufFile* adapter, const HParams& h, const ExpertParams& e,
                     int n_threads, const Progress& progress = {});

// Checks an adapter file without its base: keys, names, types, shapes, every index and value.
void check_adapter(const GgufFile& adapter, int n_threads, const Progress& progress = {});

}  // namespace sardine
