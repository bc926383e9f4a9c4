// A session's state in bytes, all little-endian:
//
//   StateHeader, weights f32 [n_weights] and bias f32 [n_bias] of the steering that made the tokens, the same
//   of the one that the context goes back to, tokens i32 [n_tokens], logits f32 [n_logits], then for each
//   layer the first n_tokens rows of its keys and of its values, then u64: Hash64 of everything before.
//
// The hash finds damage. A state made up on purpose can hold wrong numbers, but none that is not finite and
// no token outside the vocabulary.
#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <bit>

#include "engine.h"
#include "hash.h"
#include "sardine/error.h"
#include "sardine/session.h"
#include "sardine/state_io.h"
#include "state_values.h"

static_assert(std::endian::native == std::endian::little);

namespace sardine {
namespace {

constexpr std::array<char, 8> kMagic = {'S', 'A', 'R', 'D', 'S', 'T', 'A', 'T'};
constexpr uint32_t kVersion = 3;
constexpr uint64_t kPiece = 1 << 20;  // bytes read or written at a time

struct StateHeader {
    std::array<char, 8> magic = kMagic;
    uint32_t version = kVersion;
    uint32_t kv_type = 0;  // ggml's number
    uint32_t mode = 0;     // 0 sparse, 1 gain, 2 off
    uint32_t n_layer = 0, n_embd_kv = 0, n_vocab = 0;
    uint64_t model_bytes = 0, model_hash = 0;
    uint64_t n_tokens = 0, n_logits = 0;
    uint32_t n_weights = 0, n_bias = 0;
    uint32_t n_own_weights = 0, n_own_bias = 0;
};
static_assert(sizeof(StateHeader) == 80);

template <typename T>
std::span<const uint8_t> bytes_of(const T* data, size_t n) {
    return {reinterpret_cast<const uint8_t*>(data), n * sizeof(T)};
}

uint32_t mode_number(DeltaMode mode) {
    return mode == DeltaMode::sparse ? 0 : mode == DeltaMode::gain ? 1 : 2;
}

std::string mode_text(uint32_t number) {
    const DeltaMode modes[] = {DeltaMode::sparse, DeltaMode::gain, DeltaMode::off};
    return number < 3 ? delta_mode_name(modes[number]) : "number " + std::to_string(number);
}

std::string type_text(uint32_t number) {
    for (const ggml_type t : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0})
        if (number == static_cast<uint32_t>(t)) return ggml_type_name(t);
    return "number " + std::to_string(number);
}

// Identifies a model without reading all of it: sizes, every key and shape, and the start of every tensor.
uint64_t model_hash(const Model& m) {
    m.check_unchanged();
    constexpr uint64_t kStart = 256;
    Hash64 hash;
    for (const GgufFile* f : {&m.file(), m.adapter()}) {
        if (!f) continue;
        hash.add(f->bytes().first(f->data_offset()));
        for (const GgufTensor& t : f->tensors()) hash.add({f->data(t), std::min(t.nbytes, kStart)});
    }
    return hash.value();
}

StateHeader header_of(const Model& m, DeltaMode mode, ggml_type kv_type) {
    const HParams& h = m.hparams();
    return {.kv_type = static_cast<uint32_t>(kv_type),
            .mode = mode_number(mode),
            .n_layer = static_cast<uint32_t>(h.n_layer),
            .n_embd_kv = static_cast<uint32_t>(h.n_embd_kv()),
            .n_vocab = static_cast<uint32_t>(h.n_vocab),
            .model_bytes = m.file().bytes().size() + (m.adapter() ? m.adapter()->bytes().size() : 0),
            .model_hash = model_hash(m)};
}

void fill_counts(StateHeader& h, const Steering& s, const Steering& own, size_t n_tokens, size_t n_logits) {
    h.n_weights = static_cast<uint32_t>(s.weights.size());
    h.n_bias = static_cast<uint32_t>(s.bias.size());
    h.n_own_weights = static_cast<uint32_t>(own.weights.size());
    h.n_own_bias = static_cast<uint32_t>(own.bias.size());
    h.n_tokens = n_tokens;
    h.n_logits = n_logits;
}

// Where the parts of a state with this header lie; counts are small enough that nothing overflows.
struct StateLayout {
    explicit StateLayout(const StateHeader& h)
        : steering(sizeof(StateHeader)),
          own(steering + 4 * (uint64_t{h.n_weights} + h.n_bias)),
          tokens(own + 4 * (uint64_t{h.n_own_weights} + h.n_own_bias)),
          logits(tokens + 4 * h.n_tokens),
          rows(logits + 4 * h.n_logits),
          row_bytes(ggml_row_size(static_cast<ggml_type>(h.kv_type), h.n_embd_kv)),
          hash(rows + 2 * h.n_layer * h.n_tokens * row_bytes),
          end(hash + sizeof(uint64_t)) {}
    uint64_t steering, own, tokens, logits, rows, row_bytes, hash, end;
};

class StateLoader {
 public:
    StateLoader(StateReader& in, const StateHeader& expected, int64_t n_experts, int64_t n_ctx,
                StopPoint stop)
        : in_(in),
          stop_(std::move(stop)),
          n_experts_(n_experts),
          header_(read_header(expected, n_ctx)),
          layout_(header_) {
        if (in.size() != layout_.end)
            fail("size", "the state has " + std::to_string(in.size()) + " bytes, and one of " +
                             std::to_string(header_.n_tokens) + " tokens has " + std::to_string(layout_.end) +
                             ": it is truncated or damaged");
    }

    // Reads everything once before any of it is used.
    void verify() {
        steering.weights = read_vector<float>(layout_.steering, header_.n_weights);
        steering.bias =
            read_vector<float>(layout_.steering + 4 * uint64_t{header_.n_weights}, header_.n_bias);
        own.weights = read_vector<float>(layout_.own, header_.n_own_weights);
        own.bias = read_vector<float>(layout_.own + 4 * uint64_t{header_.n_own_weights}, header_.n_own_bias);
        tokens = read_vector<int32_t>(layout_.tokens, header_.n_tokens);
        logits = read_vector<float>(layout_.logits, header_.n_logits);
        Hash64 hash = hash_so_far();
        std::vector<uint8_t> piece;
        bool finite = all_finite(GGML_TYPE_F32, bytes_of(logits.data(), logits.size()));
        const uint64_t step = std::max<uint64_t>(1, kPiece / layout_.row_bytes) * layout_.row_bytes;
        for (uint64_t at = layout_.rows; at < layout_.hash; at += step) {
            piece.resize(std::min(step, layout_.hash - at));
            stop_();
            in_.read(at, piece);
            hash.add(piece);
            finite = finite && all_finite(static_cast<ggml_type>(header_.kv_type), piece);
        }
        check_hash(hash, "it is damaged");
        for (const int32_t t : tokens)
            if (t < 0 || static_cast<uint32_t>(t) >= header_.n_vocab)
                fail("tokens", "token id " + std::to_string(t) + " is outside the vocabulary of " +
                                   std::to_string(header_.n_vocab));
        if (!finite) fail("values", "a key, value or logit is not finite");
        check_steering(steering);
        check_steering(own);
    }

    void read_rows(const KvCache& cache) {
        Hash64 hash = hash_so_far();
        uint64_t at = layout_.rows;
        const uint64_t size = header_.n_tokens * layout_.row_bytes;
        std::vector<uint8_t> staged;
        for (int64_t il = 0; il < static_cast<int64_t>(header_.n_layer); ++il)
            for (ggml_tensor* t : {cache.k(il), cache.v(il)}) {
                const bool host = ggml_backend_buffer_is_host(t->buffer);
                if (!host) staged.resize(size);
                const std::span<uint8_t> rows{host ? static_cast<uint8_t*>(t->data) : staged.data(), size};
                for (uint64_t i = 0; i < size; i += kPiece) {
                    stop_();
                    const auto piece = rows.subspan(i, std::min(kPiece, size - i));
                    in_.read(at + i, piece);
                    hash.add(piece);
                }
                if (!host && size > 0) ggml_backend_tensor_set(t, staged.data(), 0, size);
                at += size;
            }
        check_hash(hash, "it changed while it was read");
    }

    Steering steering, own;
    std::vector<int32_t> tokens;
    std::vector<float> logits;

 private:
    [[noreturn]] void fail(const char* field, const std::string& what) {
        throw FormatError(in_.name(), field, what);
    }

    StateHeader read_header(const StateHeader& expected, int64_t n_ctx) {
        if (in_.size() < sizeof(StateHeader) + sizeof(uint64_t))
            fail("size", "the state has " + std::to_string(in_.size()) + " bytes, too few to be one");
        StateHeader h;
        in_.read(0, {reinterpret_cast<uint8_t*>(&h), sizeof h});
        if (h.magic != kMagic) fail("magic", "this is no saved state of sardine_gguf");
        if (h.version != kVersion)
            fail("version", "the state has version " + std::to_string(h.version) + ", this runtime reads " +
                                std::to_string(kVersion));
        auto same = [&](const char* field, uint64_t found, uint64_t wanted) {
            if (found != wanted)
                fail(field, std::string("the state is of another model: its ") + field + " is " +
                                std::to_string(found) + ", this model's is " + std::to_string(wanted));
        };
        same("n_layer", h.n_layer, expected.n_layer);
        same("n_embd_kv", h.n_embd_kv, expected.n_embd_kv);
        same("n_vocab", h.n_vocab, expected.n_vocab);
        same("file size", h.model_bytes, expected.model_bytes);
        same("hash", h.model_hash, expected.model_hash);
        if (h.mode != expected.mode)
            fail("delta_mode", "the state was saved in delta_mode '" + mode_text(h.mode) +
                                   "', this context runs '" + mode_text(expected.mode) + "'");
        if (h.kv_type != expected.kv_type)
            fail("kv_type", "the state's kv_type is '" + type_text(h.kv_type) + "', this context's is '" +
                                type_text(expected.kv_type) + "'");
        for (const uint32_t n : {h.n_weights, h.n_bias, h.n_own_weights, h.n_own_bias})
            if (n != 0 && n != n_experts_)
                fail("experts", "the state steers " + std::to_string(n) + " experts, and the model has " +
                                    std::to_string(n_experts_));
        if (h.n_logits != 0 && h.n_logits != h.n_vocab)
            fail("n_logits", "the state has " + std::to_string(h.n_logits) + " logits, expected none or " +
                                 std::to_string(h.n_vocab));
        if (h.n_tokens > in_.size() / sizeof(int32_t))
            fail("n_tokens", "the state claims " + std::to_string(h.n_tokens) + " tokens in " +
                                 std::to_string(in_.size()) + " bytes");
        if (h.n_tokens > static_cast<uint64_t>(n_ctx))
            throw ContextOverflow(in_.name() + ": the state has " + std::to_string(h.n_tokens) +
                                  " tokens, more than n_ctx " + std::to_string(n_ctx));
        return h;
    }

    template <typename T>
    std::vector<T> read_vector(uint64_t at, uint64_t n) {
        std::vector<T> out(n);
        in_.read(at, {reinterpret_cast<uint8_t*>(out.data()), n * sizeof(T)});
        return out;
    }

    Hash64 hash_so_far() const {
        Hash64 hash;
        hash.add(bytes_of(&header_, 1));
        for (const Steering* s : {&steering, &own})
            for (const std::vector<float>* v : {&s->weights, &s->bias})
                hash.add(bytes_of(v->data(), v->size()));
        hash.add(bytes_of(tokens.data(), tokens.size()));
        hash.add(bytes_of(logits.data(), logits.size()));
        return hash;
    }

    // Only what steer() leaves behind.
    void check_steering(const Steering& found) {
        try {
            if (checked_steering(found, n_experts_) == found) return;
        } catch (const InvalidArgument& e) {
            fail("experts", std::string("the state's settings of experts are damaged: ") + e.what());
        }
        fail("experts", "the state's weights of experts do not sum to 1, or it has biases that do nothing");
    }

    void check_hash(const Hash64& hash, const char* what) {
        if (read_vector<uint64_t>(layout_.hash, 1)[0] != hash.value())
            fail("hash", std::string("the state's checksum is not that of its content: ") + what);
    }

    StateReader& in_;
    StopPoint stop_;
    int64_t n_experts_;
    StateHeader header_;
    StateLayout layout_;
};

}  // namespace

uint64_t Session::state_bytes(const Steering& own) const {
    StateHeader h = header_of(*model_, mode_, engine_->cache().type());
    fill_counts(h, steering_, own, tokens_.size(), last_logits_.size());
    return StateLayout(h).end;
}

void Session::save(StateWriter& out, const Steering& own) {
    if (engine_->device()) engine_->device()->check_process();
    begin();
    const KvCache& cache = engine_->cache();
    StateHeader h = header_of(*model_, mode_, cache.type());
    fill_counts(h, steering_, own, tokens_.size(), last_logits_.size());
    Hash64 hash;
    auto put = [&](std::span<const uint8_t> bytes) {
        for (; !bytes.empty(); bytes = bytes.subspan(std::min<size_t>(bytes.size(), kPiece))) {
            stop_if_asked();
            const auto piece = bytes.first(std::min<size_t>(bytes.size(), kPiece));
            hash.add(piece);
            out.write(piece);
        }
    };
    put(bytes_of(&h, 1));
    const Steering* const kept[] = {&steering_, &own};
    for (const Steering* s : kept)
        for (const std::vector<float>* v : {&s->weights, &s->bias}) put(bytes_of(v->data(), v->size()));
    put(bytes_of(tokens_.data(), tokens_.size()));
    put(bytes_of(last_logits_.data(), last_logits_.size()));
    std::vector<uint8_t> staged;
    for (int64_t il = 0; il < model_->hparams().n_layer; ++il)
        for (const ggml_tensor* t : {cache.k(il), cache.v(il)}) {
            const size_t size = tokens_.size() * t->nb[1];
            if (ggml_backend_buffer_is_host(t->buffer)) {
                put({static_cast<const uint8_t*>(t->data), size});
                continue;
            }
            staged.resize(size);
            if (size > 0) ggml_backend_tensor_get(t, staged.data(), 0, size);
            put(staged);
        }
    const uint64_t value = hash.value();
    out.write(bytes_of(&value, 1));
}

Steering Session::load(StateReader& in) {
    if (engine_->device()) engine_->device()->check_process();
    begin();
    const int64_t n_experts = mode_ == DeltaMode::off ? 0 : model_->experts().expert_count;
    StateLoader loader(in, header_of(*model_, mode_, engine_->cache().type()), n_experts, n_ctx(),
                       [this] { stop_if_asked(); });
    loader.verify();
    if (loader.steering != steering_) engine_->steer(loader.steering);
    use({});
    steering_ = loader.steering;
    routing_ = {};
    try {
        loader.read_rows(engine_->cache());
    } catch (...) {
        forget(0);
        publish();
        throw;
    }
    tokens_ = std::move(loader.tokens);
    last_logits_ = std::move(loader.logits);
    publish();
    return std::move(loader.own);
}

}  // namespace sardine
