#include "sardine/model.h"

#include <sched.h>

#include <thread>

#include "adapter.h"

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

Model::Model(const std::string& path, const ModelOptions& options)
    : file_(path),
      hparams_(read_hparams(file_)),
      adapter_(open_adapter(options.adapter, file_, hparams_)),
      experts_(read_expert_params(adapter_ ? *adapter_ : file_, hparams_)),
      weights_(load_weights(file_, adapter_.get(), hparams_, experts_, checked_threads(options.n_threads))),
      tokenizer_(file_, hparams_.n_vocab) {}

bool Model::adapter_fits_norms() const {
    return !adapter_ || fits_norms(*adapter_, file_, hparams_);
}

}  // namespace sardine
