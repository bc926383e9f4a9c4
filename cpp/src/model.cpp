#include "sardine/model.h"

#include <sched.h>

#include <thread>

namespace sardine {

// The processors this process may run on, which containers often restrict.
int default_threads() {
    cpu_set_t set;
    if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Model::Model(const std::string& path, const ModelOptions& options)
    : file_(path),
      hparams_(read_hparams(file_)),
      experts_(read_expert_params(file_, hparams_)),
      weights_(load_weights(file_, hparams_, experts_,
                            options.n_threads > 0 ? options.n_threads : default_threads())),
      tokenizer_(file_, hparams_.n_vocab) {}

}  // namespace sardine
