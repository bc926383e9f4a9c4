#include "engine.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cstdio>

#include "sardine/error.h"
#include "sardine/session.h"
#include "system_memory.h"

namespace sardine {
namespace {

[[noreturn]] void refuse(int64_t n_ctx, const MemoryNeed& need, double available) {
    char text[300];
    std::snprintf(
        text, sizeof text,
        "n_ctx %lld needs %.0f bytes (%.0f for keys and values, %.0f to compute), but %.0f bytes are "
        "available: ask for a smaller n_ctx or n_batch",
        static_cast<long long>(n_ctx), need.total(), need.cache, need.compute, available);
    throw InsufficientMemory(text);
}

}  // namespace

void GraphSlot::reserve(const GraphContext& context, const GraphShape& largest) {
    if (ggml_gallocr_reserve(allocator_.get(), Graph(context, largest).graph)) return;
    forget();
    allocator_.reset(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
    throw InsufficientMemory("no memory to compute a batch of " + std::to_string(largest.n_tokens) +
                             " tokens: use a smaller n_batch");
}

Graph& GraphSlot::get(const GraphContext& context, const GraphShape& shape, int n_threads) {
    if (graph_ && graph_->shape == shape) return *graph_;
    graph_.reset();
    auto g = std::make_unique<Graph>(context, shape);
    if (shape.all_logits) {  // the others are what was reserved
        const double need = g->bytes(n_threads) - bytes();
        const auto available = static_cast<double>(available_memory());
        if (need > available) {
            char text[200];
            std::snprintf(text, sizeof text,
                          "the logits of a batch of %lld tokens need %.0f bytes more, but %.0f bytes are "
                          "available: use a smaller n_batch",
                          static_cast<long long>(shape.n_tokens), need, available);
            throw InsufficientMemory(text);
        }
    }
    try {
        g->allocate(allocator_.get());
    } catch (...) {
        // A failed reservation leaves the allocator without the buffer that it believes to have.
        allocator_.reset(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
        throw;
    }
    ++n_built_;
    graph_ = std::move(g);
    return *graph_;
}

double GraphSlot::bytes() const {
    return static_cast<double>(ggml_gallocr_get_buffer_size(allocator_.get(), 0));
}

Engine::Engine(const Model& m, const EngineOptions& o)
    : h_(&m.hparams()),
      n_threads_(o.n_threads),
      mode_(o.mode),
      top_k_(m.experts().expert_used_count),
      n_experts_(m.experts().expert_count),
      n_host_layers_(m.device_weights() ? m.device_weights()->first() : m.hparams().n_layer),
      backend_(ggml_backend_cpu_init()),
      scratch_(o.n_threads),
      attention_rows_(o.n_threads),
      context_{.hparams = &m.hparams(),
               .weights = &m.weights(),
               .repacked = m.repacked(),
               .cache = nullptr,
               .n_layers = n_host_layers_,
               .ends_hidden = m.device_weights() != nullptr,
               .mode = o.mode,
               .n_expert_used = m.experts().expert_used_count,
               .steering = {},
               .layer_ops = {},
               .attention_op = {.type = kv_type_of(o.kv_type),
                                .n_heads_kv = m.hparams().n_head_kv,
                                .ops = &cpu_ops(),
                                .scratch = &attention_rows_,
                                .stop = o.stop}} {
    if (!backend_) throw InsufficientMemory("no memory for the CPU backend");
    ggml_backend_cpu_set_n_threads(backend_.get(), n_threads_);
    context_.layer_ops.resize(h_->n_layer);
    for (int64_t il = 0; il < n_host_layers_; ++il) {
        const LayerExperts* x = m.weights().layers[il].experts.get();
        if (!x) continue;
        auto op = [&](const DeltaMatrix& d) {
            return DeltaOp{.delta = &d, .ops = &cpu_ops(), .scratch = &scratch_};
        };
        context_.layer_ops[il] = {op(x->gate), op(x->up), op(x->down), x->mean};
    }

    if (m.device_weights())
        device_ = std::make_unique<DeviceEngine>(*h_, *m.device_weights(), o.mode, top_k_, o.kv_type);
    choose_context(m, o);
    cache_ = std::make_unique<KvCache>(*h_, n_ctx_, o.kv_type);
    cache_->allocate(n_host_layers_, device_ ? device_->buffer_type() : nullptr);
    if (device_) device_->allocate(*cache_, n_ctx_, n_batch_);
    context_.cache = cache_.get();
    reserve_scratch(top_k_);
    for (auto& rows : attention_rows_) rows.resize(attention_scratch(h_->n_head, h_->n_head_kv));
    reserve_graphs();
}

Engine::~Engine() {
    if (device_ && cache_ && device_->is_forked()) cache_->abandon();
}

void Engine::reserve_scratch(int64_t k) {
    const bool sparse = mode_ == DeltaMode::sparse;
    for (const LayerOps& ops : context_.layer_ops)
        for (const DeltaOp* op : {&ops.gate, &ops.up, &ops.down})
            if (op->delta && (sparse || op->delta->shared.data))
                scratch_.front().reserve(*op->delta, n_batch_, sparse ? k : 0);
    // Every thread needs the same; sizing it reads all row pointers, so that is done once.
    std::fill(scratch_.begin() + 1, scratch_.end(), scratch_.front());
}

// One, or where attention changes its kind with the context's length the largest of either kind.
std::vector<GraphShape> Engine::largest_shapes(int64_t n_tokens) const {
    const GraphShape longest = shape(n_tokens, n_ctx_ - n_tokens, false);
    const int64_t short_context = std::min(n_ctx_, kFlashPositions);
    if (n_tokens > short_context) return {longest};
    const GraphShape shortest = shape(n_tokens, short_context - n_tokens, false);
    if ((longest.n_kv > 0) == (shortest.n_kv > 0)) return {longest};
    return {shortest, longest};
}

void Engine::reserve_graphs() {
    for (const GraphShape& s : largest_shapes(1)) single_.reserve(context_, s);
    if (n_batch_ == 1) return;
    for (const GraphShape& s : largest_shapes(n_batch_)) batch_.reserve(context_, s);
}

void Engine::steer(const Steering& steering) {
    if (steering == context_.steering) return;
    const int64_t k = routed(steering, top_k_);
    if (k > top_k_) reserve_scratch(k);
    GraphContext next = context_;
    next.n_expert_used = k;
    next.mode = k == 0 ? DeltaMode::off : mode_;
    next.steering = steering;
    change(std::move(next));
}

void Engine::keep_router_logits(bool keep) {
    if (keep == context_.keep_router_logits) return;
    GraphContext next = context_;
    next.keep_router_logits = keep;
    change(std::move(next));
}

// Graphs point into context_, so none is left from before.
void Engine::change(GraphContext next) {
    single_.forget();
    batch_.forget();
    std::swap(context_, next);
    auto change_device = [&] {
        if (device_)
            device_->change(context_.mode, context_.n_expert_used, context_.steering,
                            context_.keep_router_logits);
    };
    try {
        reserve_graphs();
        change_device();
    } catch (...) {
        std::swap(context_, next);
        change_device();
        throw;
    }
}

// Sets n_ctx_ and n_batch_, or throws InsufficientMemory.
void Engine::choose_context(const Model& m, const EngineOptions& o) {
    const int64_t longest =
        bounded_batch(m.weights(), n_host_layers_, o.mode == DeltaMode::sparse ? context_.n_expert_used : 0);
    auto n_batch = [&](int64_t n_ctx) { return std::min({o.n_batch, n_ctx, longest}); };
    if (o.n_ctx != kAutoContext) {
        n_ctx_ = o.n_ctx;
        n_batch_ = n_batch(n_ctx_);
        const auto available = static_cast<double>(available_memory());
        MemoryNeed n{.cache = KvCache::bytes(*h_, n_ctx_, o.kv_type, n_host_layers_)};
        if (n.cache <= available) n = need(n_ctx_, o);
        if (n.total() > available) refuse(n_ctx_, n, available);
        if (device_) device_->check_room(n_ctx_, n_batch_, o.kv_type);
        return;
    }
    // Weights stay in memory only as long as nothing else wants their pages; the rest is for everyone else.
    const uint64_t adapter = m.adapter() ? m.adapter()->bytes().size() : 0;
    const uint64_t copied = m.repacked() ? static_cast<uint64_t>(m.repacked()->mapped_bytes()) : 0;
    const auto free = static_cast<double>(available_memory(m.file().bytes().size() - copied + adapter));
    const double budget = free - std::max(free * kAutoMargin, kAutoMarginBytes);
    int64_t low = 0, high = (h_->n_ctx_train + kKvStep - 1) / kKvStep;  // in steps; low fits
    while (low < high) {
        const int64_t mid = low + (high - low + 1) / 2;
        n_ctx_ = std::min(mid * kKvStep, h_->n_ctx_train);
        n_batch_ = n_batch(n_ctx_);
        const bool fit = fits(budget, o);
        (fit ? low : high) = fit ? mid : mid - 1;
    }
    n_ctx_ = std::min(std::max<int64_t>(low, 1) * kKvStep, h_->n_ctx_train);
    n_batch_ = n_batch(n_ctx_);
    if (low > 0) return;
    if (device_) device_->check_room(n_ctx_, n_batch_, o.kv_type);
    refuse(n_ctx_, need(n_ctx_, o), std::max(budget, 0.0));
}

// Whether n_ctx_ fits the budget, and the GPU's memory with the same margin.
bool Engine::fits(double budget, const EngineOptions& o) {
    if (KvCache::bytes(*h_, n_ctx_, o.kv_type, n_host_layers_) > budget || need(n_ctx_, o).total() > budget)
        return false;
    if (!device_) return true;
    const double free = device_->free_memory();
    return KvCache::bytes(*h_, n_ctx_, o.kv_type, h_->n_layer - n_host_layers_) <= free &&
           device_->need(n_ctx_, n_batch_, o.kv_type) <=
               free - std::max(free * kAutoMargin, kAutoMarginBytes);
}

MemoryNeed Engine::need(int64_t n_ctx, const EngineOptions& o) {
    const KvCache tensors(*h_, n_ctx, o.kv_type);
    context_.cache = &tensors;
    MemoryNeed n{.cache = KvCache::bytes(*h_, n_ctx, o.kv_type, n_host_layers_)};
    for (const int64_t n_tokens : {int64_t{1}, n_batch_}) {
        double most = 0;
        for (const GraphShape& s : largest_shapes(n_tokens))
            most = std::max(most, Graph(context_, s).bytes(n_threads_));
        n.compute += most;
        if (n_batch_ == 1) break;
    }
    const int64_t k = context_.n_expert_used, widest = std::max(h_->n_ff, h_->n_embd);
    if (k > 0)
        n.compute += static_cast<double>(SparseScratch::bound(widest, n_batch_, k, n_experts_)) * n_threads_;
    context_.cache = nullptr;
    return n;
}

GraphShape Engine::shape(int64_t n_tokens, int64_t n_past, bool all_logits) const {
    // Our attention reads the positions; only flash attention's graph depends on how many there are.
    const bool flash =
        uses_flash_attention(context_.mode, context_.cache->type(), n_tokens, n_past + n_tokens);
    return {.n_tokens = n_tokens,
            .n_kv = flash ? padded_positions(n_past + n_tokens) : 0,
            .all_logits = all_logits};
}

Graph& Engine::graph(int64_t n_tokens, int64_t n_past, bool all_logits) {
    return (n_tokens == 1 ? single_ : batch_).get(context_, shape(n_tokens, n_past, all_logits), n_threads_);
}

double Engine::bytes() const {
    const double scratch = static_cast<double>(scratch_.front().bytes()) * n_threads_;
    return KvCache::bytes(*h_, n_ctx_, cache_->type(), h_->n_layer) + scratch + single_.bytes() +
           batch_.bytes() + (device_ ? device_->bytes() : 0.0);
}

}  // namespace sardine
