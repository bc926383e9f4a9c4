#include "offload/device_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "routing.h"
#include "sardine/error.h"

namespace sardine {
namespace {

// Runs of a program before it may be recorded: ggml-cuda's pool has its size by then.
constexpr int64_t kWarmRuns = 2;

bool capture_wanted() {
    const char* v = std::getenv("SARDINE_CUDA_GRAPH");
    return v && std::string(v) == "1";
}

}  // namespace

DeviceEngine::DeviceEngine(const HParams& h, const DeviceWeights& w, DeltaMode mode, int64_t k,
                           ggml_type kv_type)
    : h_(&h),
      gpu_(Gpu::open()),
      context_{.hparams = &h,
               .weights = &w,
               .cache = nullptr,
               // ggml-cuda's flash attention reads f32 keys and values as f16.
               .flash = kv_type != GGML_TYPE_F32 && device_has_flash_attention(h, kv_type, *gpu_),
               .mode = mode,
               .k = mode == DeltaMode::off ? 0 : k},
      capture_(capture_wanted()) {
    if (ggml_is_quantized(kv_type) && !context_.flash)  // ggml-cuda ends the process
        throw DeviceError(gpu_->name() + ": ggml has no flash attention for heads of " +
                          std::to_string(h.head_dim) + " there, which keys and values in " +
                          ggml_type_name(kv_type) + " need: use kv_type f16 or f32, or n_gpu_layers=0");
    for (Slot* s : {&single_, &batch_}) s->allocator.reset(ggml_gallocr_new(gpu_->buffer_type()));
}

// In a forked child this memory is CUDA's, which does not work there, so it is left alone.
DeviceEngine::~DeviceEngine() {
    if (!is_forked()) return;
    for (Slot* s : {&single_, &batch_}) static_cast<void>(s->allocator.release());
    for (ggml_backend_buffer_ptr* b : {&arena_, &steering_}) static_cast<void>(b->release());
}

double DeviceEngine::need(int64_t n_ctx, int64_t n_batch, ggml_type kv_type) const {
    const KvCache tensors(*h_, n_ctx, kv_type);
    DeviceContext c = context_;
    c.cache = &tensors;
    const int64_t n_kv = padded_positions(n_ctx);
    const DeviceProgram one(c, {.n_tokens = 1, .n_kv = n_kv, .all_logits = false});
    const DeviceProgram many(c, {.n_tokens = n_batch, .n_kv = n_kv, .all_logits = false});
    return gpu_->workspace() +
           static_cast<double>(std::max(one.arena_bytes(), many.arena_bytes()) +
                               one.graph_bytes(gpu_->buffer_type()) + many.graph_bytes(gpu_->buffer_type())) +
           KvCache::bytes(*h_, n_ctx, kv_type, h_->n_layer - context_.weights->first());
}

void DeviceEngine::check_room(int64_t n_ctx, int64_t n_batch, ggml_type kv_type) const {
    const double wanted = need(n_ctx, n_batch, kv_type), free = free_memory();
    if (wanted <= free) return;
    char text[300];
    std::snprintf(
        text, sizeof text,
        "n_ctx %lld needs %.0f bytes of the GPU's memory, but %.0f bytes are free beside the weights: ask "
        "for fewer n_gpu_layers or a smaller n_ctx or n_batch",
        static_cast<long long>(n_ctx), wanted, free);
    throw InsufficientMemory(text);
}

void DeviceEngine::allocate(const KvCache& cache, int64_t n_ctx, int64_t n_batch) {
    context_.cache = &cache;
    n_ctx_ = n_ctx;
    n_batch_ = n_batch;
    reserve();
}

// The arena for the largest program to come, and a first look at both.
void DeviceEngine::reserve() {
    for (Slot* s : {&single_, &batch_}) {
        s->program.reset();
        s->recorded.reset();
    }
    const int64_t n_kv = padded_positions(n_ctx_);
    size_t bytes = 0;
    for (const int64_t n : {int64_t{1}, n_batch_}) {
        const DeviceProgram p(context_, {.n_tokens = n, .n_kv = n_kv, .all_logits = false});
        p.check_supported(*gpu_);
        bytes = std::max(bytes, p.arena_bytes());
    }
    if (arena_ && ggml_backend_buffer_get_size(arena_.get()) >= bytes) return;
    arena_.reset();
    arena_.reset(ggml_backend_buft_alloc_buffer(gpu_->buffer_type(), bytes));
    if (!arena_)
        throw InsufficientMemory("the GPU has no memory to compute a batch of " + std::to_string(n_batch_) +
                                 " tokens: use a smaller n_batch");
}

std::unique_ptr<DeviceProgram> DeviceEngine::build(Slot& slot, const DeviceShape& shape) {
    auto p = std::make_unique<DeviceProgram>(context_, shape, arena_.get());
    const auto has = static_cast<double>(ggml_gallocr_get_buffer_size(slot.allocator.get(), 0));
    const auto wants = static_cast<double>(p->graph_bytes(gpu_->buffer_type()));
    if (wants > has && wants - has > free_memory()) {
        char text[200];
        std::snprintf(
            text, sizeof text,
            "a batch of %lld tokens needs %.0f bytes more of the GPU's memory, but %.0f bytes are free: "
            "use a smaller n_batch",
            static_cast<long long>(shape.n_tokens), wants - has, free_memory());
        throw InsufficientMemory(text);
    }
    try {
        p->allocate(slot.allocator.get());
    } catch (...) {
        slot.allocator.reset(ggml_gallocr_new(gpu_->buffer_type()));
        throw;
    }
    ++n_built_;
    return p;
}

DeviceProgram& DeviceEngine::program(Slot& slot, const DeviceShape& shape) {
    if (!slot.program || !(slot.program->shape == shape)) {
        slot.recorded.reset();
        slot.program.reset();
        slot.program = build(slot, shape);
        slot.n_runs = 0;
    }
    return *slot.program;
}

void DeviceEngine::write_inputs(const DeviceProgram& p, const float* hidden, int64_t n_past) {
    const int64_t n = p.shape.n_tokens;
    auto set = [&](ggml_tensor* t, const void* data) {
        ggml_backend_tensor_set_async(gpu_->backend(), t, data, 0, ggml_nbytes(t));
    };
    positions_.resize(n);
    rows_.resize(n);
    scale_.resize(n);
    mask_.resize(n * p.shape.n_kv);
    const ggml_fp16_t visible = ggml_fp32_to_fp16(0.0f);
    const ggml_fp16_t masked = ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < n; ++i) {
        const int64_t pos = n_past + i;
        positions_[i] = static_cast<int32_t>(pos);
        rows_[i] = pos;
        if (p.attn_scale)
            scale_[i] =
                1.0f + h_->attn_temp_scale * std::log(static_cast<float>(pos / h_->attn_temp_length) + 1.0f);
        ggml_fp16_t* row = mask_.data() + i * p.shape.n_kv;
        std::fill_n(row, pos + 1, visible);
        std::fill(row + pos + 1, row + p.shape.n_kv, masked);
    }
    set(p.hidden, hidden);
    set(p.positions, positions_.data());
    set(p.kv_rows, rows_.data());
    set(p.mask, mask_.data());
    if (p.attn_scale) set(p.attn_scale, scale_.data());
    last_ = static_cast<int32_t>(n - 1);
    if (p.last) set(p.last, &last_);
}

// ggml-cuda records a graph of its own when it sees one a second time, which it must not while we record: it
// gets a program that it has never seen.
std::unique_ptr<DeviceProgram> DeviceEngine::record(Slot& slot, const DeviceShape& shape) {
    device::Device& d = gpu_->kernels();
    std::unique_ptr<DeviceProgram> p = build(slot, shape);
    p->name_graphs("recorded " + std::to_string(++n_recorded_));
    gpu_->check(d.begin_capture());
    try {
        p->run(*gpu_, {});
    } catch (...) {
        d.abandon_capture();
        throw;
    }
    gpu_->check(d.end_capture());
    return p;
}

// False if it was stopped.
bool DeviceEngine::launch(Slot& slot, DeviceProgram& p, const StopCheck& stop) {
    device::Device& d = gpu_->kernels();
    if (!capture_ || &slot != &single_ || slot.n_runs < kWarmRuns) return p.run(*gpu_, stop);
    if (!slot.recorded) slot.recorded = record(slot, p.shape);
    if (stop(0)) return false;
    gpu_->check(d.wait_for_backend());
    gpu_->check(d.replay());
    gpu_->check(d.backend_waits());
    return true;
}

DeviceResult DeviceEngine::run(const float* hidden, int64_t n_tokens, int64_t n_past, bool all_logits,
                               const StopCheck& stop) {
    check_process();
    if (!applied_) apply();  // a change for which there was no memory
    Slot& slot = n_tokens == 1 ? single_ : batch_;
    DeviceProgram& p = program(
        slot, {.n_tokens = n_tokens, .n_kv = padded_positions(n_past + n_tokens), .all_logits = all_logits});
    if (&slot == &batch_ && single_.recorded) {
        // A batch may change ggml-cuda's pool, whose addresses are recorded.
        single_.recorded.reset();
        single_.n_runs = 0;
    }
    write_inputs(p, hidden, n_past);
    bool done = false;
    try {
        done = launch(slot, p, stop);
    } catch (...) {
        gpu_->kernels().synchronize();  // what was queued reads our inputs
        throw;
    }
    ++slot.n_runs;
    // Before ggml waits: what fails in a kernel of ours would end the process in ggml-cuda's own checks.
    gpu_->check(gpu_->kernels().synchronize());
    // The recorded program has leaves and, in the same memory, nodes at the same addresses.
    auto get = [&](const ggml_tensor* t, std::vector<float>& to) -> const float* {
        if (!t) return nullptr;
        to.resize(ggml_nelements(t));
        ggml_backend_tensor_get_async(gpu_->backend(), t, to.data(), 0, ggml_nbytes(t));
        return to.data();
    };
    DeviceResult r;
    if (done) {
        const DeviceProgram& ran = slot.recorded ? *slot.recorded : p;
        r.logits = get(ran.logits, logits_);
        r.n_rows = ran.logits->ne[1];
        r.routes = get(ran.routes, routes_);
        r.router_logits = get(ran.router_logits, router_logits_);
        r.n_layers = ran.routes ? ran.routes->ne[2] : 0;
    }
    ggml_backend_synchronize(gpu_->backend());
    if (!done) throw Cancelled("the evaluation was cancelled");
    return r;
}

void DeviceEngine::change(DeltaMode mode, int64_t k, const Steering& steering, bool keep_router_logits) {
    check_process();
    context_.mode = mode;
    context_.k = mode == DeltaMode::off ? 0 : k;
    context_.keep_router_logits = keep_router_logits;
    wanted_ = steering;
    apply();
}

// Memory and settings for what change() asked for; where it throws, the next run tries again.
void DeviceEngine::apply() {
    applied_ = false;
    context_.bias = context_.forced = nullptr;
    const Steering& steering = wanted_;
    const int64_t k = context_.k;
    std::vector<float> values = steering.bias;
    if (!steering.weights.empty()) {
        values.resize(2 * k);
        const std::vector<float> unused(steering.weights.size());
        route_token(unused.data(), static_cast<int64_t>(unused.size()), k, values.data(), steering);
    }
    reserve();
    if (values.empty()) {
        applied_ = true;
        return;
    }
    steering_.reset();
    steering_ctx_.reset(
        ggml_init({.mem_size = 2 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
    ggml_tensor* t =
        ggml_new_tensor_1d(steering_ctx_.get(), GGML_TYPE_F32, static_cast<int64_t>(values.size()));
    steering_ = gpu_->allocate(steering_ctx_.get(), "the experts' settings");
    ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    (steering.weights.empty() ? context_.bias : context_.forced) = static_cast<const float*>(t->data);
    applied_ = true;
}

double DeviceEngine::bytes() const {
    double n = arena_ ? static_cast<double>(ggml_backend_buffer_get_size(arena_.get())) : 0.0;
    for (const Slot* s : {&single_, &batch_})
        n += static_cast<double>(ggml_gallocr_get_buffer_size(s->allocator.get(), 0));
    return n;
}

}  // namespace sardine
