#include "time_deltas.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "kernels/sparse_delta.h"
#include "page_advice.h"
#include "sardine/error.h"

namespace sardine::python {
namespace {

std::vector<float> random_routes(int64_t n_tokens, int64_t k, int64_t n_experts, std::mt19937& source) {
    std::vector<float> routes;
    std::vector<int> order(n_experts);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t t = 0; t < n_tokens; ++t) {
        std::shuffle(order.begin(), order.end(), source);
        routes.insert(routes.end(), k, 1.0f / static_cast<float>(k));
        routes.insert(routes.end(), order.begin(), order.begin() + k);
    }
    return routes;
}

}  // namespace

std::vector<double> time_deltas(const Model& model, const std::string& path, int64_t n_tokens, int64_t k,
                                int n_threads, int repetitions) {
    const CpuOps* ops = find_cpu_ops(path.c_str());
    const auto n_experts = static_cast<int64_t>(model.experts().expert_count);
    if (!ops) throw InvalidArgument("path '" + path + "' does not run here");
    if (n_tokens < 1 || k < 1 || k > n_experts || n_threads < 1 || repetitions < 1)
        throw InvalidArgument("expected at least one token, thread and repetition, and 1 to " +
                              std::to_string(n_experts) + " experts");
    std::vector<const DeltaMatrix*> deltas;
    int64_t widest = 0, tallest = 0, most_bytes = 0;
    std::vector<SparseScratch> scratch(n_threads);
    for (const LayerWeights& l : model.weights().layers) {
        if (!l.experts) continue;
        for (const DeltaMatrix* d : {&l.experts->gate, &l.experts->up, &l.experts->down}) {
            deltas.push_back(d);
            widest = std::max(widest, d->n_cols);
            tallest = std::max(tallest, d->n_rows);
            most_bytes =
                std::max(most_bytes, packed_bytes(tile_ops(*d, *ops), d->n_cols, n_tokens, k, d->n_experts));
            scratch.front().reserve(*d, n_tokens, k);
        }
    }
    std::fill(scratch.begin() + 1, scratch.end(), scratch.front());
    std::mt19937 source(0);
    std::normal_distribution<float> normal;
    const std::vector<float> routes = random_routes(n_tokens, k, n_experts, source);
    std::vector<float> x(n_tokens * widest), y(n_tokens * tallest);
    std::generate(x.begin(), x.end(), [&] { return normal(source); });
    const auto tiles = std::make_unique_for_overwrite<uint8_t[]>(most_bytes);
    advise_pages(tiles.get(), most_bytes, MADV_HUGEPAGE);  // as the graph's memory

    std::vector<double> seconds;
    for (int r = 0; r < repetitions; ++r) {
        std::atomic<int64_t> arrived{0};
        const auto start = std::chrono::steady_clock::now();
        auto work = [&](int ith) {
            int64_t expected = 0;
            auto meet = [&] {
                expected += n_threads;
                arrived.fetch_add(1);
                while (arrived.load(std::memory_order_acquire) < expected) std::this_thread::yield();
            };
            for (size_t i = 0; i < deltas.size(); ++i) {
                const DeltaMatrix* d = deltas[i];
                const Routes r{.data = routes.data(), .k = k, .stride = 2 * k};
                if (n_tokens >= kMinTileTokens && i % 3 != 1) {  // up reads what gate does
                    pack_tiles(tile_ops(*d, *ops), {r, n_tokens, d->n_experts}, x.data(), d->n_cols,
                               d->n_cols, ith, n_threads, scratch[ith].tiles, packed_begin(tiles.get()));
                    meet();
                }
                sparse_delta_add({.delta = d,
                                  .routes = r,
                                  .n_tokens = n_tokens,
                                  .x = x.data(),
                                  .x_stride = d->n_cols,
                                  .tiles = packed_begin(tiles.get()),
                                  .y = y.data(),
                                  .y_stride = d->n_rows},
                                 *ops, ith, n_threads, scratch[ith]);
                meet();
            }
        };
        std::vector<std::jthread> threads;
        for (int i = 1; i < n_threads; ++i) threads.emplace_back(work, i);
        work(0);
        threads.clear();
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
}

}  // namespace sardine::python
