// Splits a range over a few threads and waits; the first exception is rethrown to the caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace sardine {

// body(begin, end) runs on disjoint ranges whose bounds are multiples of `grain` (but for n itself).
template <typename F>
void parallel_for(int64_t n, int n_threads, int64_t grain, const F& body) {
    const int64_t n_grains = (n + grain - 1) / grain;
    const int64_t n_parts = std::clamp<int64_t>(n_threads, 1, std::max<int64_t>(1, n_grains));
    if (n_parts == 1) {
        body(int64_t{0}, n);
        return;
    }
    std::vector<std::exception_ptr> errors(n_parts);
    {
        std::vector<std::jthread> threads;
        threads.reserve(n_parts);
        for (int64_t i = 0; i < n_parts; ++i)
            threads.emplace_back([&, i] {
                try {
                    body(std::min(n, n_grains * i / n_parts * grain),
                         std::min(n, n_grains * (i + 1) / n_parts * grain));
                } catch (...) {
                    errors[i] = std::current_exception();
                }
            });
    }
    for (const auto& e : errors)
        if (e) std::rethrow_exception(e);
}

}  // namespace sardine
