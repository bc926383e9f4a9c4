// Seconds that the delta ops alone take, for benchmarks.
#pragma once

#include <string>
#include <vector>

#include "sardine/model.h"

namespace sardine::python {

// Every delta of a model once in each of `repetitions` rounds, on n_tokens random tokens with random routes
// of k experts; threads meet after each matrix, as they do in the graph. Throws InvalidArgument.
std::vector<double> time_deltas(const Model& model, const std::string& path, int64_t n_tokens, int64_t k,
                                int n_threads, int repetitions);

}  // namespace sardine::python
