#include "sardine/session.h"

#include <ggml-alloc.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "graph.h"
#include "kv_cache.h"
#include "sardine/error.h"

namespace sardine {
namespace {

constexpr int64_t kInterruptNs = 100'000'000;

ggml_type parse_kv_type(const std::string& name) {
    if (name == "f16") return GGML_TYPE_F16;
    if (name == "f32") return GGML_TYPE_F32;
    throw InvalidArgument("kv_type '" + name + "' is unknown, expected f16 or f32");
}

int64_t now_ns() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

// A graph with memory of its own: single tokens and batches keep one each, so neither evicts the other.
struct GraphSlot {
    ggml_gallocr_ptr allocator{ggml_gallocr_new(ggml_backend_cpu_buffer_type())};
    std::unique_ptr<Graph> graph;

    Graph& get(const GraphContext& context, const GraphShape& shape) {
        if (!graph || !(graph->shape == shape)) {
            graph.reset();
            try {
                graph = std::make_unique<Graph>(context, shape, allocator.get());
            } catch (...) {
                // A failed reservation leaves the allocator without the buffer that it believes to have.
                allocator.reset(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
                throw;
            }
        }
        return *graph;
    }
};

}  // namespace

struct Session::Engine {
    Engine(const Model& m, int64_t n_ctx, int64_t n_batch, int n_threads, ggml_type kv_type, DeltaMode mode)
        : cache(m.hparams(), n_ctx, kv_type),
          backend(ggml_backend_cpu_init()),
          scratch(n_threads),
          attention_rows(n_threads,
                         std::vector<float>(attention_scratch(m.hparams().n_head, m.hparams().n_head_kv))),
          context{.hparams = &m.hparams(),
                  .weights = &m.weights(),
                  .cache = &cache,
                  .mode = mode,
                  .n_expert_used = m.experts().expert_used_count,
                  .layer_ops = {},
                  .attention_op = {.type = kv_type == GGML_TYPE_F16 ? KvType::f16 : KvType::f32,
                                   .n_heads_kv = m.hparams().n_head_kv,
                                   .ops = &cpu_ops(),
                                   .scratch = &attention_rows}} {
        if (!backend) throw InsufficientMemory("no memory for the CPU backend");
        ggml_backend_cpu_set_n_threads(backend.get(), n_threads);
        context.layer_ops.resize(m.hparams().n_layer);
        for (int64_t il = 0; il < m.hparams().n_layer; ++il) {
            const LayerExperts* x = m.weights().layers[il].experts.get();
            if (!x) continue;
            auto op = [&](const DeltaMatrix& d) {
                if (mode == DeltaMode::sparse || d.shared.data)
                    scratch.front().reserve(d, n_batch,
                                            mode == DeltaMode::sparse ? context.n_expert_used : 0);
                return DeltaOp{.delta = &d, .ops = &cpu_ops(), .scratch = &scratch};
            };
            context.layer_ops[il] = {op(x->gate), op(x->up), op(x->down), x->mean};
        }
        // Every thread needs the same; sizing it reads all row pointers, so that is done once.
        std::fill(scratch.begin() + 1, scratch.end(), scratch.front());
    }

    KvCache cache;
    ggml_backend_ptr backend;
    std::vector<SparseScratch> scratch;
    std::vector<std::vector<float>> attention_rows;
    GraphContext context;
    GraphSlot single, batch;
};

Session::Session(std::shared_ptr<const Model> model, const SessionOptions& o)
    : model_(std::move(model)), mode_(o.mode) {
    const HParams& h = model_->hparams();
    if (o.n_ctx < 0 || o.n_ctx > std::numeric_limits<int32_t>::max())
        throw InvalidArgument("n_ctx is " + std::to_string(o.n_ctx) +
                              ", expected 1 to 2147483647, or 0 for the default");
    if (o.n_batch < 1)
        throw InvalidArgument("n_batch is " + std::to_string(o.n_batch) + ", expected at least 1");
    if (mode_ != DeltaMode::off && model_->experts().expert_count == 0)
        throw InvalidArgument("delta_mode '" + std::string(delta_mode_name(mode_)) +
                              "' needs a file with experts, and " + model_->path() +
                              " is a plain base model: use 'off'");
    n_ctx_ = o.n_ctx ? o.n_ctx : std::min(h.n_ctx_train, kDefaultContext);
    n_batch_ = std::min(o.n_batch, n_ctx_);
    n_threads_ = checked_threads(o.n_threads);
    engine_ =
        std::make_unique<Engine>(*model_, n_ctx_, n_batch_, n_threads_, parse_kv_type(o.kv_type), mode_);
    ggml_backend_cpu_set_abort_callback(
        engine_->backend.get(), [](void* self) { return static_cast<Session*>(self)->should_stop(); }, this);
    tokens_.reserve(std::min<int64_t>(n_ctx_, 1 << 16));
}

Session::~Session() = default;

std::unique_lock<std::mutex> Session::lock() {
    std::unique_lock<std::mutex> l(mutex_, std::try_to_lock);
    if (!l)
        throw BusyError("this context is evaluating in another thread: give each thread its own, or wait");
    return l;
}

double Session::memory_bytes() {
    const auto held = lock();
    return KvCache::bytes(model_->hparams(), n_ctx_, engine_->cache.type()) +
           static_cast<double>(ggml_gallocr_get_buffer_size(engine_->single.allocator.get(), 0)) +
           static_cast<double>(ggml_gallocr_get_buffer_size(engine_->batch.allocator.get(), 0));
}

// Called on the evaluating thread after each node.
bool Session::should_stop() {
    if (cancelled_.load(std::memory_order_relaxed)) return true;
    if (!interrupt_) return false;
    const int64_t now = now_ns();
    if (now < next_interrupt_ns_) return false;
    next_interrupt_ns_ = now + kInterruptNs;
    if (interrupt_()) cancelled_.store(true, std::memory_order_relaxed);
    return cancelled_.load(std::memory_order_relaxed);
}

void Session::truncate(int64_t n) {
    if (n < 0) throw InvalidArgument("cannot keep " + std::to_string(n) + " tokens");
    if (n >= static_cast<int64_t>(tokens_.size())) return;
    tokens_.resize(n);
    last_logits_.clear();
    routing_ = {};
}

void Session::check(std::span<const int32_t> tokens) const {
    const auto n = static_cast<int64_t>(tokens.size());
    const auto n_past = static_cast<int64_t>(tokens_.size());
    if (n == 0) throw InvalidArgument("there are no tokens to evaluate");
    if (n > n_ctx_ - n_past)
        throw ContextOverflow(std::to_string(n) + " tokens do not fit: the context of " +
                              std::to_string(n_ctx_) + " tokens holds " + std::to_string(n_past) +
                              " already. Nothing was evaluated");
    for (const int32_t t : tokens)
        if (t < 0 || t >= model_->hparams().n_vocab)
            throw InvalidArgument("token id " + std::to_string(t) + " is outside the vocabulary of " +
                                  std::to_string(model_->hparams().n_vocab));
}

void Session::eval(std::span<const int32_t> tokens, float* all_logits) {
    check(tokens);
    const auto n = static_cast<int64_t>(tokens.size());
    const auto n_past = static_cast<int64_t>(tokens_.size());
    const int64_t n_vocab = model_->hparams().n_vocab;
    cancelled_.store(false, std::memory_order_relaxed);
    next_interrupt_ns_ = now_ns() + kInterruptNs;
    routing_ = {};
    if (mode_ != DeltaMode::off) {
        routing_.n_layers = static_cast<int64_t>(model_->experts().layers.size());
        routing_.n_tokens = n;
        routing_.k = model_->experts().expert_used_count;
        routing_.ids.resize(routing_.n_layers * n * routing_.k);
        routing_.weights.resize(routing_.ids.size());
    }
    try {
        for (int64_t i = 0; i < n; i += n_batch_) {
            const int64_t m = std::min(n_batch_, n - i);
            run(tokens.subspan(i, m), all_logits != nullptr, all_logits ? all_logits + i * n_vocab : nullptr,
                i);
            tokens_.insert(tokens_.end(), tokens.begin() + i, tokens.begin() + i + m);
        }
    } catch (...) {
        tokens_.resize(n_past);
        last_logits_.clear();
        routing_ = {};
        throw;
    }
}

void Session::run(std::span<const int32_t> tokens, bool want_all, float* all_logits, int64_t routed_before) {
    const HParams& h = model_->hparams();
    const auto n = static_cast<int64_t>(tokens.size());
    const auto n_past = static_cast<int64_t>(tokens_.size());
    // Our attention reads the positions; only flash attention's graph depends on how many there are.
    const GraphShape shape{.n_tokens = n,
                           .n_kv = uses_flash_attention(mode_, n) ? padded_positions(n_past + n) : 0,
                           .all_logits = want_all};
    Graph& g = (n == 1 ? engine_->single : engine_->batch).get(engine_->context, shape);

    std::memcpy(g.tokens->data, tokens.data(), n * sizeof(int32_t));
    for (int64_t i = 0; i < n; ++i) {
        const int64_t pos = n_past + i;
        static_cast<int32_t*>(g.positions->data)[i] = static_cast<int32_t>(pos);
        static_cast<int64_t*>(g.kv_rows->data)[i] = pos;
        if (g.attn_scale)
            static_cast<float*>(g.attn_scale->data)[i] =
                1.0f + h.attn_temp_scale * std::log(static_cast<float>(pos / h.attn_temp_length) + 1.0f);
    }
    if (g.mask) {
        const ggml_fp16_t visible = ggml_fp32_to_fp16(0.0f);
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
        auto* row = static_cast<ggml_fp16_t*>(g.mask->data);
        for (int64_t i = 0; i < n; ++i, row += shape.n_kv) {
            std::fill_n(row, n_past + i + 1, visible);
            std::fill(row + n_past + i + 1, row + shape.n_kv, hidden);
        }
    }
    if (g.last) *static_cast<int32_t*>(g.last->data) = static_cast<int32_t>(n - 1);

    const ggml_status status = ggml_backend_graph_compute(engine_->backend.get(), g.graph);
    if (status == GGML_STATUS_ABORTED) throw Cancelled("the evaluation was cancelled");
    if (status == GGML_STATUS_ALLOC_FAILED) throw InsufficientMemory("no memory for ggml's work buffer");
    if (status != GGML_STATUS_SUCCESS) throw Error("ggml failed with status " + std::to_string(status));

    const auto* logits = static_cast<const float*>(g.logits->data);
    if (want_all) std::memcpy(all_logits, logits, n * h.n_vocab * sizeof(float));
    const float* last = logits + (want_all ? (n - 1) * h.n_vocab : 0);
    last_logits_.assign(last, last + h.n_vocab);

    for (size_t il = 0; il < g.routes.size(); ++il) {
        const auto* rows = static_cast<const float*>(g.routes[il]->data);
        const int64_t k = routing_.k;
        for (int64_t t = 0; t < n; ++t) {
            const int64_t out = (static_cast<int64_t>(il) * routing_.n_tokens + routed_before + t) * k;
            for (int64_t j = 0; j < k; ++j) {
                routing_.weights[out + j] = rows[t * 2 * k + j];
                routing_.ids[out + j] = static_cast<int32_t>(rows[t * 2 * k + k + j]);
            }
        }
    }
}

}  // namespace sardine
