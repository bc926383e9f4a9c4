// One context on a shared model: the tokens so far, their keys and values, and the evaluation of more.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "sardine/model.h"

namespace sardine {

struct SessionOptions {
    int64_t n_ctx = 0;  // 0: the model's context length, at most kDefaultContext
    int64_t n_batch = 512;
    int n_threads = 0;            // 0: all processors
    std::string kv_type = "f16";  // or "f32"
    DeltaMode mode = DeltaMode::off;
};

constexpr int64_t kDefaultContext = 8192;

class Session {
 public:
    // Throws InvalidArgument or InsufficientMemory.
    Session(std::shared_ptr<const Model> model, const SessionOptions& options);
    ~Session();

    const Model& model() const { return *model_; }
    int64_t n_ctx() const { return n_ctx_; }
    int64_t n_batch() const { return n_batch_; }
    int n_threads() const { return n_threads_; }
    DeltaMode mode() const { return mode_; }
    double memory_bytes();  // keys, values and compute buffers

    // Appends tokens. all_logits, if not null, receives [n, n_vocab] floats. On any error the context is as
    // before. Throws ContextOverflow, InvalidArgument, Cancelled, BusyError, InsufficientMemory.
    void eval(std::span<const int32_t> tokens, float* all_logits);

    // Throws what eval would for these tokens, without evaluating.
    void check(std::span<const int32_t> tokens) const;

    // Forgets all but the first n tokens.
    void truncate(int64_t n);
    const std::vector<int32_t>& tokens() const { return tokens_; }

    // Logits after the last token [n_vocab]; empty before the first eval and after a truncation.
    std::span<const float> last_logits() const { return last_logits_; }

    // Of the last eval, each [n_layers_with_experts, n_tokens, k]; empty with mode off.
    struct Routing {
        int64_t n_layers = 0, n_tokens = 0, k = 0;
        std::vector<int32_t> ids;
        std::vector<float> weights;
    };
    const Routing& routing() const { return routing_; }

    // May be called from any thread: stops the running eval soon.
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
    // Asked now and then, from the thread that calls eval; true stops it.
    void set_interrupt(std::function<bool()> interrupt) { interrupt_ = std::move(interrupt); }

    // Held by a call that reads or changes the context. Throws BusyError instead of waiting.
    std::unique_lock<std::mutex> lock();

 private:
    struct Engine;

    void run(std::span<const int32_t> tokens, bool want_all, float* all_logits, int64_t routed_before);
    bool should_stop();

    std::shared_ptr<const Model> model_;
    int64_t n_ctx_ = 0, n_batch_ = 0;
    int n_threads_ = 0;
    DeltaMode mode_;
    std::unique_ptr<Engine> engine_;
    std::vector<int32_t> tokens_;
    std::vector<float> last_logits_;
    Routing routing_;
    std::atomic<bool> cancelled_{false};
    std::function<bool()> interrupt_;
    int64_t next_interrupt_ns_ = 0;
    std::mutex mutex_;
};

}  // namespace sardine
