// The base model's metadata as a validated struct.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf_file.h"

namespace sardine {

// Arguments of ggml_rope_ext; `attn_factor` includes what cancels ggml's own YaRN magnitude.
struct RopeParams {
    int n_ctx_orig = 0;
    float freq_base = 10000.0f;
    float freq_scale = 1.0f;
    float ext_factor = 0.0f;
    float attn_factor = 1.0f;
    float beta_fast = 32.0f;
    float beta_slow = 1.0f;
};

struct HParams {
    std::string arch;  // "mistral3" or "llama"
    int64_t n_layer = 0, n_embd = 0, n_ff = 0, n_head = 0, n_head_kv = 0, head_dim = 0, n_vocab = 0;
    int64_t n_ctx_train = 0;
    float rms_eps = 0.0f;
    RopeParams rope;
    // q is scaled by 1 + attn_temp_scale * ln(1 + floor(pos / attn_temp_length)); 0 turns it off.
    float attn_temp_scale = 0.0f;
    int64_t attn_temp_length = 0;

    int64_t n_embd_kv() const { return head_dim * n_head_kv; }
};

enum class DeltaMode { sparse, gain, off };

DeltaMode parse_delta_mode(const std::string& name);  // throws InvalidArgument
const char* delta_mode_name(DeltaMode mode);

// The sardine.* keys. expert_count is 0 for a plain base file.
struct ExpertParams {
    uint32_t expert_count = 0, expert_used_count = 0, block_columns = 0;
    bool has_shared = false;  // the deltas have a part that every mode adds
    DeltaMode default_mode = DeltaMode::off;
    std::vector<std::string> names;
    std::vector<uint32_t> layers;
};

// n_vocab is the number of rows of the embedding. Throws FormatError, also for an adapter file.
HParams read_hparams(const GgufFile& file);
ExpertParams read_expert_params(const GgufFile& file, const HParams& base);

}  // namespace sardine
