#include "sardine/model.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "adapter.h"
#include "sardine/error.h"
#include "sardine/session.h"

namespace sardine {

// The processors this process may run on, which containers often restrict.
int default_threads() {
    cpu_set_t set;
    if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int checked_threads(int n_threads) {
    if (n_threads < 0 || n_threads > 512)
        throw InvalidArgument("n_threads is " + std::to_string(n_threads) +
                              ", expected 1 to 512, or 0 for all");
    return n_threads > 0 ? n_threads : default_threads();
}

namespace {

// Where the stages of loading lie between 0 and 1: the checks, the tokenizer, the copies to a GPU and into
// other layouts.
struct Stage {
    double begin, end;
};
constexpr Stage kGpu{0.4, 1.0}, kRepack{0.2, 1.0}, kGpuThenRepack{0.2, 0.5}, kRepackAfterGpu{0.5, 1.0};

Stage checks_of(const ModelOptions& o) {
    return {0.0, o.repack ? 0.1 : o.n_gpu_layers ? 0.3 : 0.9};
}

Progress within(Stage stage, const Progress& progress) {
    if (!progress) return {};
    return [stage, &progress](double done) { progress(stage.begin + done * (stage.end - stage.begin)); };
}

StopPoint at(double done, const Progress& progress) {
    if (!progress) return {};
    return [done, &progress] { progress(done); };
}

}  // namespace

Model::Model(const std::string& path, const ModelOptions& options)
    : file_(path),
      hparams_(read_hparams(file_)),
      adapter_(open_adapter(options.adapter, file_, hparams_)),
      experts_(read_expert_params(adapter_ ? *adapter_ : file_, hparams_)),
      weights_(load_weights(file_, adapter_.get(), hparams_, experts_, checked_threads(options.n_threads),
                            within(checks_of(options), options.progress))),
      tokenizer_(file_, hparams_.n_vocab, at(checks_of(options).end, options.progress)) {
    check_unchanged();
    offload(options);
    repack(options);
    if (options.progress) options.progress(1.0);
}

void Model::offload(const ModelOptions& options) {
    int64_t n = options.n_gpu_layers;
    if (n < kAutoLayers)
        throw InvalidArgument("n_gpu_layers is " + std::to_string(n) +
                              ", expected at least 0, -1 for all layers, or auto");
    if (n == 0) return;
    const std::unique_ptr<Gpu> gpu = Gpu::open();
    const int64_t all = hparams_.n_layer + 1;
    if (n == kAutoLayers) {
        ContextPlan plan = options.plan;
        if (plan.n_ctx <= 0) plan.n_ctx = std::min(hparams_.n_ctx_train, kDefaultContext);
        n = gpu_plan(weights_, hparams_, plan, gpu->free_memory()).first;
        if (n == 0) return;
    }
    if (n == kAllLayers || n > all) n = all;
    check_gpu_weights(weights_, hparams_, n, gpu->free_memory());
    device_weights_ = std::make_unique<DeviceWeights>(
        weights_, hparams_, all - n, *gpu, within(options.repack ? kGpuThenRepack : kGpu, options.progress));
    check_unchanged();
    gpu_ = gpu->name();
}

void Model::repack(const ModelOptions& options) {
    if (!options.repack) return;
    const int64_t n_layers = device_weights_ ? device_weights_->first() : hparams_.n_layer;
    repacked_ = std::make_unique<RepackedWeights>(
        weights_, n_layers, !device_weights_, checked_threads(options.n_threads),
        within(device_weights_ ? kRepackAfterGpu : kRepack, options.progress));
    check_unchanged();
}

void Model::check_unchanged() const {
    file_.check_unchanged();
    if (adapter_) adapter_->check_unchanged();
}

bool Model::adapter_fits_norms() const {
    check_unchanged();
    return !adapter_ || fits_norms(*adapter_, file_, hparams_);
}

}  // namespace sardine
