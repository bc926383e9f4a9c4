// One context on a shared model: the tokens so far, their keys and values, and the evaluation of more.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sardine/model.h"
#include "sardine/steering.h"

namespace sardine {

struct SessionOptions {
    int64_t n_ctx = 0;            // 0: the model's context length, at most kDefaultContext; or kAutoContext
    int64_t n_batch = 512;        // may be lowered so that a cancelled evaluation stops soon
    int n_threads = 0;            // 0: all processors
    std::string kv_type = "f16";  // or "f32", "q8_0"
    DeltaMode mode = DeltaMode::off;
};

constexpr int64_t kDefaultContext = 8192;

// The longest context, up to the model's own, whose memory is free beside the weights', less a margin: the
// larger of kAutoMarginBytes and the share kAutoMargin of what is free.
constexpr int64_t kAutoContext = -1;
constexpr double kAutoMargin = 0.125, kAutoMarginBytes = 128.0 * 1024 * 1024;

class Engine;
class Profile;
class StateReader;
class StateWriter;

class Session {
 public:
    // Throws InvalidArgument or InsufficientMemory.
    Session(std::shared_ptr<const Model> model, const SessionOptions& options);
    ~Session();

    const Model& model() const { return *model_; }
    int64_t n_ctx() const;
    int64_t n_batch() const;
    int n_threads() const { return n_threads_; }
    DeltaMode mode() const { return mode_; }

    // What was done so far.
    struct Counts {
        int64_t tokens = 0, batches = 0, graphs = 0;  // evaluated, evaluated, built
        int64_t nodes = 0;                            // of the last batch's graph
    };
    // Facts that any thread may ask for at any time, also during an eval: as of the last batch.
    struct Facts {
        int64_t n_tokens = 0;     // that the context holds
        double memory_bytes = 0;  // keys, values and compute buffers
        Counts counts;
    };
    Facts facts() const;

    // Who uses the context. Each call that changes what it holds makes it no one's. A longer use claims it
    // and hands the number that it got to its calls, which throw ContextChanged if anything came between.
    using Claim = std::optional<uint64_t>;
    uint64_t claim() { return ++claim_; }
    void check_claim(Claim claim) const;

    // Appends tokens. all_logits, if not null, receives [n, n_vocab] floats. On any error the context is as
    // before. A cancel() after n_cancels() was `since` stops it, by default one from now on. Throws
    // ContextChanged, ContextOverflow, InvalidArgument, Cancelled, InsufficientMemory, ModelChanged.
    void eval(std::span<const int32_t> tokens, float* all_logits, std::optional<uint64_t> since = {},
              Claim claim = {});

    // Throws what eval would for these tokens, without evaluating.
    void check(std::span<const int32_t> tokens) const;

    // Forgets all but the first n tokens.
    void truncate(int64_t n, Claim claim = {});
    const std::vector<int32_t>& tokens() const { return tokens_; }

    // Logits after the last token [n_vocab]; empty before the first eval and after a truncation.
    std::span<const float> last_logits() const { return last_logits_; }

    // Of the last eval, ids and weights [n_layers_with_experts, n_tokens, k]; empty with mode off. k is the
    // model's, or how many experts a steering leaves. Logits are the router's own, not clamped nor biased,
    // [n_layers_with_experts, n_tokens, n_expert], empty unless they are kept.
    struct Routing {
        int64_t n_layers = 0, n_tokens = 0, k = 0;
        std::vector<int32_t> ids;
        std::vector<float> weights;
        std::vector<float> logits;
    };
    const Routing& routing() const { return routing_; }
    void keep_router_logits(bool keep);

    // Changes the choice of experts. What the context holds was computed with others, so a change empties it.
    // Throws InvalidArgument, for any steering but none in mode off; InsufficientMemory.
    void steer(Steering steering, Claim claim = {});
    const Steering& steering() const { return steering_; }

    // The tokens with their keys, values and last logits, the steering that made them and, for the one who
    // loads it, one more (of its own, from which this one may differ), as session_state.cpp lays them out.
    // load() gives the context that save() saw, bit for bit; on an error in the data it changes nothing, on
    // one in reading it empties the context. Throws FormatError, ContextOverflow, IoError, Cancelled.
    uint64_t state_bytes(const Steering& own) const;
    void save(StateWriter& out, const Steering& own);
    Steering load(StateReader& in);

    // From now on, or no longer, measures where the time goes; profile() is what was found since the last
    // set_profile(true), empty before: nanoseconds by kind of node.
    void set_profile(bool on);
    std::map<std::string, int64_t> profile() const;

    // May be called from any thread: stops the running eval soon, and those that began `since` before.
    void cancel() { n_cancels_.fetch_add(1, std::memory_order_relaxed); }
    uint64_t n_cancels() const { return n_cancels_.load(std::memory_order_relaxed); }
    // Asked now and then, from the thread that calls eval; true stops it.
    void set_interrupt(std::function<bool()> interrupt) { interrupt_ = std::move(interrupt); }

    // For what takes long beside eval, between its steps: begin() once, then a check that throws Cancelled.
    void begin(std::optional<uint64_t> since = {});
    void stop_if_asked();

    // Held by a call that reads or changes the context. Throws BusyError instead of waiting; ForkError in a
    // forked child, where neither the threads of OpenMP nor a GPU's context are.
    std::unique_lock<std::mutex> lock();

 private:
    void run(std::span<const int32_t> tokens, bool want_all, float* all_logits, int64_t routed_before);
    bool should_stop(int ith);
    void use(Claim claim);
    void forget(int64_t n);
    void publish();

    std::shared_ptr<const Model> model_;
    int n_threads_ = 0;
    DeltaMode mode_;
    std::unique_ptr<Engine> engine_;
    std::unique_ptr<Profile> profile_;  // null: not measured
    std::vector<int32_t> tokens_;
    std::vector<float> last_logits_;
    Routing routing_;
    Steering steering_;
    bool keep_router_logits_ = false;
    Counts counts_;
    uint64_t claim_ = 0;
    mutable std::mutex facts_mutex_;  // held for a copy only
    Facts facts_;
    std::atomic<uint64_t> n_cancels_{0};
    uint64_t since_ = 0;
    std::atomic<bool> stopped_{false};
    std::function<bool()> interrupt_;
    int64_t next_interrupt_ns_ = 0;
    std::mutex mutex_;
    pid_t pid_ = 0;  // of the process that made it
};

}  // namespace sardine
