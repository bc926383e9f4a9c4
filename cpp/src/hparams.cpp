#include "hparams.h"

#include <cmath>
#include <set>

#include "adapter.h"
#include "delta_pack.h"

namespace sardine {
namespace {

constexpr uint32_t kNewestVersion = 2;

// A count that must lie in [low, high].
int64_t ranged(const GgufFile& f, const std::string& key, uint32_t value, uint32_t low, uint32_t high) {
    if (value < low || value > high)
        f.fail(key, "key '" + key + "' is " + std::to_string(value) + ", expected " + std::to_string(low) +
                        " to " + std::to_string(high));
    return value;
}

float yarn_mscale(float factor, float m) {
    return factor <= 1.0f ? 1.0f : 0.1f * m * std::log(factor) + 1.0f;
}

// Magnitude and scaling as libllama computes them (llama-context.cpp), so that both run the same model.
RopeParams read_rope(const GgufFile& f, const std::string& a, int64_t n_ctx_train) {
    RopeParams r;
    r.freq_base = f.f32(a + ".rope.freq_base", 10000.0f);
    if (r.freq_base <= 0.0f) f.fail(a + ".rope.freq_base", "rope.freq_base must be positive");
    r.n_ctx_orig = static_cast<int>(ranged(
        f, a + ".rope.scaling.original_context_length",
        f.u32(a + ".rope.scaling.original_context_length", static_cast<uint32_t>(n_ctx_train)), 1, 1u << 30));

    const std::string type_key = a + ".rope.scaling.type";
    const std::string type = f.has(type_key) ? std::string(f.string(type_key)) : "linear";
    float factor = f.f32(a + ".rope.scaling.factor", f.f32(a + ".rope.scale_linear", 0.0f));
    if (factor == 0.0f) factor = 1.0f;
    if (factor < 0.0f) f.fail(a + ".rope.scaling.factor", "rope.scaling.factor must not be negative");
    if (type == "linear") {
        r.freq_scale = 1.0f / factor;
    } else if (type == "yarn") {
        r.freq_scale = 1.0f / factor;
        r.ext_factor = 1.0f;
        // libllama reads these three for mistral3 alone.
        float log_mul = 0.0f;
        if (a == "mistral3") {
            r.beta_fast = f.f32(a + ".rope.scaling.yarn_beta_fast", 32.0f);
            r.beta_slow = f.f32(a + ".rope.scaling.yarn_beta_slow", 1.0f);
            log_mul = f.f32(a + ".rope.scaling.yarn_log_multiplier", 0.0f);
        }
        r.attn_factor = log_mul != 0.0f ? yarn_mscale(factor, 1.0f) / yarn_mscale(factor, log_mul)
                                        : yarn_mscale(factor, 1.0f);
        // ggml multiplies by 1 + 0.1 ln(factor) itself whenever ext_factor is not 0.
        r.attn_factor /= 1.0f + 0.1f * std::log(factor);
    } else if (type != "none") {
        f.fail(type_key, "rope scaling type '" + type + "' is not supported, expected none, linear or yarn");
    }
    r.attn_factor *= f.f32(a + ".rope.scaling.attn_factor", 1.0f);
    if (!std::isfinite(r.attn_factor) || !std::isfinite(r.freq_scale))
        f.fail(a + ".rope.scaling.factor", "the rope scaling values give an infinite scale");
    return r;
}

}  // namespace

HParams read_hparams(const GgufFile& f) {
    refuse_adapter(f);
    HParams h;
    h.arch = std::string(f.string("general.architecture"));
    if (h.arch != "mistral3" && h.arch != "llama")
        f.fail("general.architecture",
               "architecture '" + h.arch + "' is not supported, expected 'mistral3' or 'llama'");
    const std::string a = h.arch;
    auto count = [&](const char* name, uint32_t high) {
        const std::string key = a + "." + name;
        return ranged(f, key, f.u32(key), 1, high);
    };
    if (f.u32(a + ".expert_count", 0) != 0)
        f.fail(a + ".expert_count", "the base is a mixture-of-experts model, which is not supported");
    h.n_layer = count("block_count", 4096);
    h.n_ctx_train = count("context_length", 1u << 30);
    h.n_embd = count("embedding_length", 1u << 20);
    h.n_ff = count("feed_forward_length", 1u << 24);
    h.n_head = count("attention.head_count", 1u << 16);
    const std::string kv_key = a + ".attention.head_count_kv";
    h.n_head_kv = ranged(f, kv_key, f.u32(kv_key, static_cast<uint32_t>(h.n_head)), 1, 1u << 16);
    if (h.n_head % h.n_head_kv != 0)
        f.fail(kv_key, "attention.head_count " + std::to_string(h.n_head) +
                           " is not a multiple of head_count_kv " + std::to_string(h.n_head_kv));
    const std::string hd_key = a + ".attention.key_length";
    if (!f.has(hd_key) && h.n_embd % h.n_head != 0)
        f.fail(hd_key,
               "key '" + hd_key + "' is missing and embedding_length is not a multiple of head_count");
    h.head_dim = ranged(f, hd_key, f.u32(hd_key, static_cast<uint32_t>(h.n_embd / h.n_head)), 2, 1024);
    const std::string vd_key = a + ".attention.value_length";
    const std::string rd_key = a + ".rope.dimension_count";
    const auto hd = static_cast<uint32_t>(h.head_dim);
    ranged(f, vd_key, f.u32(vd_key, hd), hd, hd);
    ranged(f, rd_key, f.u32(rd_key, hd), hd, hd);
    if (h.head_dim % 2) f.fail(hd_key, "the head dimension " + std::to_string(h.head_dim) + " is odd");
    h.rms_eps = f.f32(a + ".attention.layer_norm_rms_epsilon");
    if (h.rms_eps < 0.0f) f.fail(a + ".attention.layer_norm_rms_epsilon", "the RMS norm epsilon is negative");
    h.rope = read_rope(f, a, h.n_ctx_train);
    if (a == "mistral3") {
        h.attn_temp_scale = f.f32(a + ".attention.temperature_scale", 0.0f);
        h.attn_temp_length = h.rope.n_ctx_orig;
    }
    const char* embd_name = "token_embd.weight";
    const GgufTensor* embd = f.find_tensor(embd_name);
    if (!embd) f.fail(embd_name, "tensor 'token_embd.weight' is missing");
    h.n_vocab = embd->ne[1];
    if (h.n_vocab < 1 || h.n_vocab > INT32_MAX)
        f.fail(embd_name, "tensor 'token_embd.weight' has an impossible number of rows");
    return h;
}

DeltaMode parse_delta_mode(const std::string& name) {
    for (const DeltaMode m : {DeltaMode::sparse, DeltaMode::gain, DeltaMode::off})
        if (name == delta_mode_name(m)) return m;
    throw InvalidArgument("delta_mode '" + name + "' is unknown, expected sparse, gain or off");
}

const char* delta_mode_name(DeltaMode mode) {
    return mode == DeltaMode::sparse ? "sparse" : mode == DeltaMode::gain ? "gain" : "off";
}

// "none", "residual" or "extracted"; files of version 1 may leave it out and have no extracted part.
std::string_view read_compensation(const GgufFile& f, uint32_t version) {
    const char* key = "sardine.compensation";
    if (version == 1 && !f.has(key)) return "none";
    const std::string_view c = f.string(key);
    if (c != "none" && c != "residual" && (c != "extracted" || version == 1))
        f.fail(key, "sardine.compensation is '" + std::string(c.substr(0, 40)) + "' in a file of version " +
                        std::to_string(version) + ", expected none, residual" +
                        (version == 1 ? "" : " or extracted"));
    return c;
}

ExpertParams read_expert_params(const GgufFile& f, const HParams& base) {
    ExpertParams e;
    if (!f.has("sardine.version")) {
        for (const auto& [key, value] : f.values())
            if (key.starts_with("sardine.")) f.fail("sardine.version", "key 'sardine.version' is missing");
        return e;
    }
    const uint32_t version = f.u32("sardine.version");
    if (version < 1 || version > kNewestVersion)
        f.fail("sardine.version", "sardine.version is " + std::to_string(version) +
                                      ", this runtime reads versions 1 to " + std::to_string(kNewestVersion) +
                                      ": update sardine_gguf or convert again");
    e.has_shared = read_compensation(f, version) == "extracted";
    e.expert_count = static_cast<uint32_t>(
        ranged(f, "sardine.expert_count", f.u32("sardine.expert_count"), 1, kMaxExperts));
    e.expert_used_count = static_cast<uint32_t>(
        ranged(f, "sardine.expert_used_count", f.u32("sardine.expert_used_count"), 1, e.expert_count));
    e.block_columns =
        static_cast<uint32_t>(ranged(f, "sardine.block_columns", f.u32("sardine.block_columns"), 1, 65536));

    const std::string mode(f.string("sardine.delta_mode"));
    if (mode != "sparse" && mode != "gain")
        f.fail("sardine.delta_mode",
               "sardine.delta_mode is '" + mode.substr(0, 40) + "', expected sparse or gain");
    e.default_mode = parse_delta_mode(mode);

    std::set<std::string_view> seen;
    for (const std::string_view name : f.string_array("sardine.expert_names")) {
        if (name.empty() || !seen.insert(name).second)
            f.fail("sardine.expert_names", "an expert's name is empty or stands twice");
        e.names.emplace_back(name);
    }
    if (e.names.size() != e.expert_count)
        f.fail("sardine.expert_names", "there are " + std::to_string(e.names.size()) + " expert names for " +
                                           std::to_string(e.expert_count) + " experts");

    e.layers = f.u32_array("sardine.layers");
    if (e.layers.empty()) f.fail("sardine.layers", "sardine.layers is empty");
    for (size_t i = 0; i < e.layers.size(); ++i)
        if (e.layers[i] >= base.n_layer || (i > 0 && e.layers[i] <= e.layers[i - 1]))
            f.fail("sardine.layers", "sardine.layers must rise and stay below " +
                                         std::to_string(base.n_layer) + ", found " +
                                         std::to_string(e.layers[i]));
    return e;
}

}  // namespace sardine
