#include "sardine/session.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine.h"
#include "profile.h"
#include "sardine/error.h"

namespace sardine {
namespace {

constexpr int64_t kInterruptNs = 100'000'000;

int64_t now_ns() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

// The process in which OpenMP made threads for us, 0 before: it waits for them forever in a forked child.
std::atomic<pid_t> threads_made_in{0};

[[noreturn]] void refuse_fork(const std::string& what) {
    throw ForkError(what +
                    " in the process that fork made of another one, which does not have its threads: " +
                    "use multiprocessing's 'spawn' or 'forkserver', or n_threads=1 in both");
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model, const SessionOptions& o)
    : model_(std::move(model)), mode_(o.mode), pid_(::getpid()) {
    const HParams& h = model_->hparams();
    if ((o.n_ctx < 0 && o.n_ctx != kAutoContext) || o.n_ctx > std::numeric_limits<int32_t>::max())
        throw InvalidArgument("n_ctx is " + std::to_string(o.n_ctx) +
                              ", expected 1 to 2147483647, or 0 for the default");
    if (o.n_batch < 1)
        throw InvalidArgument("n_batch is " + std::to_string(o.n_batch) + ", expected at least 1");
    if (mode_ != DeltaMode::off && model_->experts().expert_count == 0)
        throw InvalidArgument("delta_mode '" + std::string(delta_mode_name(mode_)) +
                              "' needs a file with experts, and " + model_->path() +
                              " is a plain base model: use 'off'");
    n_threads_ = checked_threads(o.n_threads);
    const pid_t threads_in = threads_made_in;
    if (n_threads_ > 1 && threads_in != 0 && threads_in != pid_)
        refuse_fork("a context with n_threads=" + std::to_string(n_threads_) + " cannot be made");
    model_->check_unchanged();
    const StopCheck stop{[](void* self, int ith) { return static_cast<Session*>(self)->should_stop(ith); },
                         this};
    engine_ = std::make_unique<Engine>(
        *model_, EngineOptions{.n_ctx = o.n_ctx ? o.n_ctx : std::min(h.n_ctx_train, kDefaultContext),
                               .n_batch = o.n_batch,
                               .n_threads = n_threads_,
                               .kv_type = parse_kv_type(o.kv_type, h),
                               .mode = mode_,
                               .stop = stop});
    engine_->set_abort_callback(
        [](void* data) {
            auto* self = static_cast<Session*>(data);
            if (self->profile_) self->profile_->node_done();
            return self->should_stop(0);
        },
        this);
    tokens_.reserve(std::min<int64_t>(n_ctx(), 1 << 16));
    publish();
}

Session::~Session() = default;

std::unique_lock<std::mutex> Session::lock() {
    std::unique_lock<std::mutex> l(mutex_, std::try_to_lock);
    const bool forked = pid_ != ::getpid();
    if (forked && (!l || n_threads_ > 1 || model_->device_weights()))
        refuse_fork("a context that the parent made with n_threads=" + std::to_string(n_threads_) +
                    " cannot be used");
    if (!l)
        throw BusyError("this context is evaluating in another thread: give each thread its own, or wait");
    return l;
}

int64_t Session::n_ctx() const {
    return engine_->n_ctx();
}

int64_t Session::n_batch() const {
    return engine_->n_batch();
}

Session::Facts Session::facts() const {
    std::unique_lock held(facts_mutex_, std::defer_lock);
    if (pid_ == ::getpid())
        held.lock();
    else if (!held.try_lock())  // by a thread of the parent, which no one here ends
        refuse_fork("the facts of a context that the parent was changing cannot be read");
    return facts_;
}

void Session::publish() {
    Facts f{.n_tokens = static_cast<int64_t>(tokens_.size()),
            .memory_bytes = engine_->bytes(),
            .counts = counts_};
    f.counts.graphs = engine_->graphs_built();
    f.counts.nodes = engine_->batch_nodes();
    const std::lock_guard held(facts_mutex_);
    facts_ = f;
}

void Session::check_claim(Claim claim) const {
    if (claim && *claim != claim_)
        throw ContextChanged(
            "another call has used this context meanwhile, so what was begun on it cannot go on: begin it "
            "again, "
            "or give each its own context with new_context()");
}

// What follows changes the context, for the one who has claimed it or, without a claim, for no one.
void Session::use(Claim claim) {
    check_claim(claim);
    if (!claim) ++claim_;
}

void Session::set_profile(bool on) {
    profile_ = on ? std::make_unique<Profile>() : nullptr;
}

std::map<std::string, int64_t> Session::profile() const {
    return profile_ ? profile_->times() : Profile::Times();
}

// Thread 0 is the one that called eval; the others learn from it.
bool Session::should_stop(int ith) {
    if (stopped_.load(std::memory_order_relaxed)) return true;
    if (ith != 0) return false;
    bool stop = n_cancels() != since_;
    if (!stop && interrupt_) {
        const int64_t now = now_ns();
        if (now >= next_interrupt_ns_) {
            next_interrupt_ns_ = now + kInterruptNs;
            stop = interrupt_();
        }
    }
    if (stop) stopped_.store(true, std::memory_order_relaxed);
    return stop;
}

void Session::truncate(int64_t n, Claim claim) {
    check_claim(claim);
    if (n < 0) throw InvalidArgument("cannot keep " + std::to_string(n) + " tokens");
    if (n >= static_cast<int64_t>(tokens_.size())) return;
    use(claim);
    forget(n);
    publish();
}

void Session::forget(int64_t n) {
    tokens_.resize(n);
    last_logits_.clear();
    routing_ = {};
}

void Session::steer(Steering steering, Claim claim) {
    check_claim(claim);
    const auto n_experts = static_cast<int64_t>(model_->experts().expert_count);
    if (!steering.empty() && mode_ == DeltaMode::off)
        throw InvalidArgument("experts are set, and delta_mode 'off' runs none: use 'sparse' or 'gain'");
    steering = checked_steering(std::move(steering), n_experts);
    if (steering == steering_) return;
    model_->check_unchanged();
    engine_->steer(steering);
    use(claim);
    steering_ = std::move(steering);
    forget(0);
    publish();
}

void Session::keep_router_logits(bool keep) {
    engine_->keep_router_logits(keep);
    keep_router_logits_ = keep;
    publish();
}

void Session::check(std::span<const int32_t> tokens) const {
    const auto n = static_cast<int64_t>(tokens.size());
    const auto n_past = static_cast<int64_t>(tokens_.size());
    if (n == 0) throw InvalidArgument("there are no tokens to evaluate");
    if (n > n_ctx() - n_past)
        throw ContextOverflow(std::to_string(n) + " tokens do not fit: the context of " +
                              std::to_string(n_ctx()) + " tokens holds " + std::to_string(n_past) +
                              " already. Nothing was evaluated");
    for (const int32_t t : tokens)
        if (t < 0 || t >= model_->hparams().n_vocab)
            throw InvalidArgument("token id " + std::to_string(t) + " is outside the vocabulary of " +
                                  std::to_string(model_->hparams().n_vocab));
}

void Session::begin(std::optional<uint64_t> since) {
    since_ = since.value_or(n_cancels());
    stopped_.store(false, std::memory_order_relaxed);
    next_interrupt_ns_ = now_ns() + kInterruptNs;
}

void Session::stop_if_asked() {
    if (should_stop(0)) throw Cancelled("this was cancelled");
}

void Session::eval(std::span<const int32_t> tokens, float* all_logits, std::optional<uint64_t> since,
                   Claim claim) {
    check_claim(claim);
    check(tokens);
    begin(since);
    if (n_cancels() != since_) throw Cancelled("the evaluation was cancelled before it began");
    model_->check_unchanged();
    const auto n = static_cast<int64_t>(tokens.size());
    const auto n_past = static_cast<int64_t>(tokens_.size());
    const int64_t n_vocab = model_->hparams().n_vocab;
    use(claim);
    routing_ = {};
    if (mode_ != DeltaMode::off) {
        routing_.n_layers = static_cast<int64_t>(model_->experts().layers.size());
        routing_.n_tokens = n;
        routing_.k = engine_->n_expert_used();
        routing_.ids.resize(routing_.n_layers * n * routing_.k);
        routing_.weights.resize(routing_.ids.size());
        if (keep_router_logits_ && routing_.k > 0)
            routing_.logits.resize(routing_.n_layers * n * model_->experts().expert_count);
    }
    try {
        for (int64_t i = 0; i < n; i += n_batch()) {
            const int64_t m = std::min(n_batch(), n - i);
            if (i > 0) model_->check_unchanged();
            run(tokens.subspan(i, m), all_logits != nullptr, all_logits ? all_logits + i * n_vocab : nullptr,
                i);
            tokens_.insert(tokens_.end(), tokens.begin() + i, tokens.begin() + i + m);
            publish();
        }
    } catch (...) {
        forget(n_past);
        publish();
        throw;
    }
}

void Session::run(std::span<const int32_t> tokens, bool want_all, float* all_logits, int64_t routed_before) {
    const HParams& h = model_->hparams();
    const auto n = static_cast<int64_t>(tokens.size());
    const auto n_past = static_cast<int64_t>(tokens_.size());
    Graph& g = engine_->graph(n, n_past, want_all);

    std::memcpy(g.tokens->data, tokens.data(), n * sizeof(int32_t));
    for (int64_t i = 0; i < n; ++i) {
        const int64_t pos = n_past + i;
        if (g.positions) static_cast<int32_t*>(g.positions->data)[i] = static_cast<int32_t>(pos);
        if (g.kv_rows) static_cast<int64_t*>(g.kv_rows->data)[i] = pos;
        if (g.attn_scale)
            static_cast<float*>(g.attn_scale->data)[i] =
                1.0f + h.attn_temp_scale * std::log(static_cast<float>(pos / h.attn_temp_length) + 1.0f);
    }
    if (g.mask) {
        const ggml_fp16_t visible = ggml_fp32_to_fp16(0.0f);
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
        auto* row = static_cast<ggml_fp16_t*>(g.mask->data);
        for (int64_t i = 0; i < n; ++i, row += g.shape.n_kv) {
            std::fill_n(row, n_past + i + 1, visible);
            std::fill(row + n_past + i + 1, row + g.shape.n_kv, hidden);
        }
    }

    if (n_threads_ > 1) threads_made_in = pid_;
    if (profile_) profile_->begin(g.graph);
    const ggml_status status = engine_->compute(g);
    if (profile_) profile_->end();
    if (status == GGML_STATUS_ABORTED) throw Cancelled("the evaluation was cancelled");
    if (status == GGML_STATUS_ALLOC_FAILED) throw InsufficientMemory("no memory for ggml's work buffer");
    if (status != GGML_STATUS_SUCCESS) throw Error("ggml failed with status " + std::to_string(status));

    auto take_logits = [&](const float* rows, int64_t n_rows) {
        if (want_all) all_logits = std::copy_n(rows, n_rows * h.n_vocab, all_logits);
        last_logits_.assign(rows + (n_rows - 1) * h.n_vocab, rows + n_rows * h.n_vocab);
    };
    int64_t il = 0;  // layers with experts
    auto take_routes = [&](const float* rows, const float* router_logits) {
        const int64_t k = routing_.k;
        for (int64_t t = 0; t < n; ++t) {
            const int64_t out = (il * routing_.n_tokens + routed_before + t) * k;
            for (int64_t j = 0; j < k; ++j) {
                routing_.weights[out + j] = rows[t * 2 * k + j];
                routing_.ids[out + j] = static_cast<int32_t>(rows[t * 2 * k + k + j]);
            }
        }
        const int64_t n_experts = model_->experts().expert_count;
        if (router_logits)
            std::copy_n(router_logits, n * n_experts,
                        routing_.logits.begin() + (il * routing_.n_tokens + routed_before) * n_experts);
        ++il;
    };
    for (const ggml_tensor* part : g.logits) take_logits(static_cast<const float*>(part->data), part->ne[1]);
    for (size_t i = 0; i < g.routes.size(); ++i)
        take_routes(static_cast<const float*>(g.routes[i]->data),
                    g.router_logits.empty() ? nullptr : static_cast<const float*>(g.router_logits[i]->data));
    if (DeviceEngine* device = engine_->device()) {
        const DeviceResult r =
            device->run(static_cast<const float*>(g.hidden->data), n, n_past, want_all,
                        {[](void* self, int) { return static_cast<Session*>(self)->should_stop(0); }, this});
        take_logits(r.logits, r.n_rows);
        for (int64_t i = 0; i < r.n_layers; ++i)
            take_routes(r.routes + i * n * 2 * routing_.k,
                        r.router_logits ? r.router_logits + i * n * model_->experts().expert_count : nullptr);
    }
    counts_.tokens += n;
    counts_.batches += 1;
}

}  // namespace sardine
