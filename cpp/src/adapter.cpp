#include "adapter.h"

#include <array>

namespace sardine {
namespace {

constexpr const char* kModel = "model";
constexpr const char* kAdapter = "adapter";

std::string text(const GgufFile& f, const char* key, const char* fallback) {
    return f.has(key) ? std::string(f.string(key).substr(0, 40)) : fallback;
}

// Both files' numbers, or nothing where they agree.
void compare(const GgufFile& adapter, const GgufFile& base, const char* name, int64_t wanted, int64_t found) {
    if (wanted == found) return;
    const std::string key = std::string("sardine.base.") + name;
    adapter.fail(key, "this adapter is for a base with " + std::string(name) + " " + std::to_string(wanted) +
                          ", but " + base.path() + " has " + std::to_string(found) +
                          ": give the base that the experts were trained on");
}

}  // namespace

void refuse_adapter(const GgufFile& file) {
    if (text(file, "general.type", kModel) != kAdapter) return;
    file.fail("general.type", "this is an adapter (of type '" + text(file, "adapter.type", "unknown") +
                                  "'), expected a model: give the base with -m and this file with --adapter");
}

HParams read_adapter_shape(const GgufFile& f) {
    const std::string type = text(f, "general.type", kModel);
    if (type != kAdapter)
        f.fail("general.type", "this is a file of type '" + type +
                                   "', expected an adapter as convert-sardine --adapter writes it: "
                                   "a model is given with -m alone");
    const std::string kind(f.string("adapter.type").substr(0, 40));
    if (kind != "sardine")
        f.fail("adapter.type", "this is an adapter of type '" + kind + "', expected 'sardine'");
    const std::string repair = text(f, "sardine.compensation", "none");
    if (repair != "none")
        f.fail("sardine.compensation",
               "sardine.compensation is '" + repair +
                   "', expected none: an adapter cannot know what the quantization of "
                   "its base lost");
    HParams h;
    h.arch = std::string(f.string("general.architecture"));
    auto count = [&f](const char* name, uint32_t high) {
        const std::string key = std::string("sardine.base.") + name;
        const uint32_t n = f.u32(key);
        if (n < 1 || n > high)
            f.fail(key,
                   "key '" + key + "' is " + std::to_string(n) + ", expected 1 to " + std::to_string(high));
        return static_cast<int64_t>(n);
    };
    // The limits of read_hparams: nothing beyond them matches a base.
    h.n_layer = count("block_count", 4096);
    h.n_embd = count("embedding_length", 1u << 20);
    h.n_ff = count("feed_forward_length", 1u << 24);
    h.n_head = count("attention.head_count", 1u << 16);
    h.n_head_kv = count("attention.head_count_kv", 1u << 16);
    h.head_dim = count("attention.key_length", 1024);
    h.n_vocab = count("vocab_size", INT32_MAX);
    f.u32("sardine.base.norm_crc32");
    return h;
}

std::unique_ptr<GgufFile> open_adapter(const std::optional<std::string>& path, const GgufFile& base,
                                       const HParams& h) {
    if (!path) return nullptr;
    auto adapter = std::make_unique<GgufFile>(*path);
    const HParams wanted = read_adapter_shape(*adapter);
    for (const auto& [key, value] : base.values())
        if (key.starts_with("sardine."))
            base.fail(key, "this model has experts already, so no adapter can be added: give its plain base");
    if (wanted.arch != h.arch)
        adapter->fail("general.architecture", "this adapter is for a base of architecture '" +
                                                  wanted.arch.substr(0, 40) + "', but " + base.path() +
                                                  " is of '" + h.arch + "'");
    compare(*adapter, base, "block_count", wanted.n_layer, h.n_layer);
    compare(*adapter, base, "embedding_length", wanted.n_embd, h.n_embd);
    compare(*adapter, base, "feed_forward_length", wanted.n_ff, h.n_ff);
    compare(*adapter, base, "attention.head_count", wanted.n_head, h.n_head);
    compare(*adapter, base, "attention.head_count_kv", wanted.n_head_kv, h.n_head_kv);
    compare(*adapter, base, "attention.key_length", wanted.head_dim, h.head_dim);
    compare(*adapter, base, "vocab_size", wanted.n_vocab, h.n_vocab);
    return adapter;
}

uint32_t norm_checksum(const GgufFile& base, const HParams& h) {
    std::array<uint32_t, 256> table;
    for (uint32_t i = 0; i < 256; ++i) {
        table[i] = i;
        for (int bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    uint32_t crc = ~0u;
    auto add = [&](const std::string& name) {
        const GgufTensor& t = *base.find_tensor(name);
        const uint8_t* p = base.data(t);
        for (uint64_t i = 0; i < t.nbytes; ++i) crc = crc >> 8 ^ table[(crc ^ p[i]) & 0xFF];
    };
    for (int64_t i = 0; i < h.n_layer; ++i) {
        const std::string layer = "blk." + std::to_string(i) + ".";
        add(layer + "attn_norm.weight");
        add(layer + "ffn_norm.weight");
    }
    add("output_norm.weight");
    return ~crc;
}

bool fits_norms(const GgufFile& adapter, const GgufFile& base, const HParams& h) {
    return adapter.u32("sardine.base.norm_crc32") == norm_checksum(base, h);
}

}  // namespace sardine
