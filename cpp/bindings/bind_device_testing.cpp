// The GPU's kernels in their emulation, for tests.
#include <ggml-cpu.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>

#include "bindings.h"
#include "delta_arrays.h"
#include "delta_upload.h"
#include "emulated_device.h"
#include "emulation.h"
#include "offload/gpu.h"
#include "sardine/error.h"

namespace sardine::python {
namespace {

using namespace sardine::device;

// Arrays where the kernels read them: on the GPU, or for the emulation copies as aligned as there.
class Memory {
 public:
    explicit Memory(const Gpu* gpu) : gpu_(gpu) {}

    template <typename T>
    T* put(const T* data, size_t n) {
        const size_t size = sizeof(T) * n;
        if (!gpu_) {
            auto& m = host_.emplace_back(size + kAlignment);
            const auto at = reinterpret_cast<uintptr_t>(m.data());
            uint8_t* to = m.data() + (kAlignment - at % kAlignment) % kAlignment;
            std::memcpy(to, data, size);
            return reinterpret_cast<T*>(to);
        }
        contexts_.emplace_back(
            ggml_init({.mem_size = ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true}));
        ggml_tensor* t = ggml_new_tensor_1d(contexts_.back().get(), GGML_TYPE_I8,
                                            static_cast<int64_t>(std::max<size_t>(size, 1)));
        buffers_.push_back(gpu_->allocate(contexts_.back().get(), "a test's array"));
        ggml_backend_tensor_set(t, data, 0, size);
        tensors_[t->data] = t;
        return static_cast<T*>(t->data);
    }
    template <typename T>
    T* put(const std::vector<T>& data) {
        return put(data.data(), data.size());
    }
    // `at` is what put() gave.
    template <typename T>
    void get(T* to, const T* at, size_t n) const {
        if (gpu_)
            ggml_backend_tensor_get(tensors_.at(at), to, 0, sizeof(T) * n);
        else
            std::memcpy(to, at, sizeof(T) * n);
    }

 private:
    const Gpu* gpu_;
    std::deque<std::vector<uint8_t>> host_;
    std::vector<ggml_context_ptr> contexts_;
    std::vector<ggml_backend_buffer_ptr> buffers_;
    std::map<const void*, ggml_tensor*> tensors_;
};

// The device of a test: emulated, or the GPU that there is.
struct Bench {
    std::unique_ptr<Gpu> gpu;
    std::unique_ptr<Device> emulated;
    Device& device() const { return gpu ? gpu->kernels() : *emulated; }
    // After it all launches have ended.
    void finish() const { check(device().synchronize()); }
    static void check(const char* error) {
        if (error) throw Error(error);
    }
};

Limits limits_of(int n_multiprocessors, size_t shared_block) {
    return {.n_multiprocessors = n_multiprocessors,
            .threads = 1024,
            .shared_block = shared_block,
            .shared_all = std::max<size_t>(shared_block + 1024, 64 << 10)};
}

// `order` is "forward", "backward" or "random", for the emulation.
Bench make_bench(bool gpu, const Limits& limits, const std::string& order, uint32_t seed) {
    const std::map<std::string, grid::Order> orders = {{"forward", grid::Order::forward},
                                                       {"backward", grid::Order::backward},
                                                       {"random", grid::Order::random}};
    Bench b;
    if (gpu) {
        b.gpu = Gpu::open();
    } else {
        grid::set_emulation_order(orders.at(order), seed);
        b.emulated = open_emulated_device(limits);
    }
    Bench::check(b.device().wait_for_backend());
    return b;
}

Delta put_delta(Memory& memory, const DeltaMatrix& m, int n_warps, const std::vector<int32_t>& warp_rows) {
    const DeltaLayout at(m, n_warps);
    return device::view_delta(m, at, memory.put(pack_delta(m, at, warp_rows)));
}

// y [n_tokens, n_rows] of both row kernels' uses: the matrix alone upon `base`, or twice in one launch.
void run_rows(const Bench& bench, const DeltaMatrix& m, const Array<float>& routes, const Array<float>& x,
              const std::vector<float>& base, std::vector<float>& y, std::vector<float>& twice) {
    Device& device = bench.device();
    Memory memory(bench.gpu.get());
    RowsArgs a;
    a.x = memory.put(x.data(), x.size());
    a.x_stride = m.n_cols;
    a.n_tokens = static_cast<int32_t>(x.shape(0));
    a.k = static_cast<int32_t>(routes.shape(1) / 2);
    a.routes = memory.put(routes.data(), routes.size());
    const int64_t width = std::min(m.block_columns, m.n_cols);
    const RowsShape shape = rows_shape(device.limits(), width, m.n_positions);
    const auto split = split_rows({m.row_ptr}, m.n_rows, m.n_blocks, shape.total_warps());
    a.delta[0] = put_delta(memory, m, shape.total_warps(), split[0]);
    a.y[0] = memory.put(y);
    a.base = memory.put(base);
    Bench::check(device.delta_rows(a, shape));
    bench.finish();
    memory.get(y.data(), a.y[0], y.size());

    const RowsShape both = rows_shape(device.limits(), width, 2 * m.n_positions);
    const auto halves = split_rows({m.row_ptr, m.row_ptr}, m.n_rows, m.n_blocks, both.total_warps());
    for (int i = 0; i < 2; ++i) {
        a.delta[i] = put_delta(memory, m, both.total_warps(), halves[i]);
        a.y[i] = memory.put(twice.data() + i * y.size(), y.size());
    }
    a.n_matrices = 2;
    a.base = nullptr;
    Bench::check(device.delta_rows(a, both));
    bench.finish();
    for (int i = 0; i < 2; ++i) memory.get(twice.data() + i * y.size(), a.y[i], y.size());
}

void run_tiles(const Bench& bench, const DeltaMatrix& m, const Array<float>& routes, const Array<float>& x,
               std::vector<float>& y) {
    Device& device = bench.device();
    Memory memory(bench.gpu.get());
    const auto n_tokens = static_cast<int32_t>(x.shape(0)), k = static_cast<int32_t>(routes.shape(1) / 2);
    const auto n_cols = static_cast<int32_t>(m.n_cols);
    const float* on_routes = memory.put(routes.data(), routes.size());
    const float* on_x = memory.put(x.data(), x.size());
    const int32_t n_tiles =
        k > 0 ? max_tiles(n_tokens, m.n_experts) : (n_tokens + kTileTokens - 1) / kTileTokens;
    auto* tokens = memory.put(std::vector<int32_t>(static_cast<size_t>(k) * n_tokens, -1));
    auto* tiles = memory.put(std::vector<Tile>(static_cast<size_t>(k) * n_tiles));
    if (k > 0)
        Bench::check(device.group({.routes = on_routes,
                                   .n_tokens = n_tokens,
                                   .n_experts = m.n_experts,
                                   .k = k,
                                   .tokens = tokens,
                                   .tiles = tiles}));
    float* on_y = memory.put(y);
    const Delta delta = put_delta(memory, m, 1, {0, static_cast<int32_t>(m.n_rows)});
    for (int32_t j = 0; j < std::max(k, 1); ++j)
        Bench::check(device.delta_tiles({.delta = delta,
                                         .y = on_y,
                                         .x = on_x,
                                         .x_stride = n_cols,
                                         .n_tokens = n_tokens,
                                         .n_tiles = n_tiles,
                                         .k = k,
                                         .j = j,
                                         .routes = on_routes,
                                         .tokens = tokens + j * n_tokens,
                                         .tiles = tiles + j * n_tiles,
                                         .stage_columns = 0}));
    bench.finish();
    memory.get(y.data(), on_y, y.size());
}

}  // namespace

void bind_device_testing(py::module_& m) {
    m.def(
        "device_delta",
        [](const std::string& kernel, const Array<int32_t>& row_ptr, const Array<uint16_t>& col,
           const Array<uint8_t>& val, const std::string& type, const Array<float>& scale, int64_t n_rows,
           int64_t n_cols, int64_t block_columns, const Array<float>& routes, const Array<float>& x,
           const std::optional<Array<uint8_t>>& shared, const std::string& shared_type, float shared_scale,
           int n_multiprocessors, size_t shared_block, const std::string& order, uint32_t seed, bool gpu) {
            const DeltaMatrix d = python::view_delta(row_ptr, col, val, type, scale, n_rows, n_cols,
                                                     block_columns, shared, shared_type, shared_scale);
            check_routes(d, routes, x);
            const int64_t n_tokens = x.shape(0);
            const Bench bench = make_bench(gpu, limits_of(n_multiprocessors, shared_block), order, seed);
            if (kernel == "tiles") {
                std::vector<float> y(n_tokens * n_rows);
                run_tiles(bench, d, routes, x, y);
                return std::vector<Array<float>>{Array<float>({n_tokens, n_rows}, y.data())};
            }
            // Outputs start as anything: what is not written shows.
            const float nan = std::numeric_limits<float>::quiet_NaN();
            std::vector<float> y(n_tokens * n_rows, nan), base(y.size(), 0.0f), twice(2 * y.size(), nan);
            for (size_t i = 0; i < base.size(); ++i) base[i] = static_cast<float>(i % 7) - 3.0f;
            run_rows(bench, d, routes, x, base, y, twice);
            std::vector<Array<float>> out;
            for (const float* p : {y.data(), base.data(), twice.data(), twice.data() + y.size()})
                out.push_back(Array<float>({n_tokens, n_rows}, p));
            return out;
        },
        py::arg("kernel"), py::arg("row_ptr"), py::arg("col"), py::arg("val"), py::arg("type"),
        py::arg("scale"), py::kw_only(), py::arg("n_rows"), py::arg("n_cols"), py::arg("block_columns"),
        py::arg("routes"), py::arg("x"), py::arg("shared") = py::none(), py::arg("shared_type") = "f32",
        py::arg("shared_scale") = 1.0f, py::arg("n_multiprocessors") = 1, py::arg("shared_block") = 49152,
        py::arg("order") = "forward", py::arg("seed") = 0, py::arg("gpu") = false,
        "The deltas by the kernel 'tiles', [y], or 'rows', [y upon a base, that base, y and y of two "
        "matrices in one launch]; emulated, or on the GPU.");
    m.def(
        "device_route",
        [](const Array<float>& router, const Array<float>& x, int64_t k,
           const std::optional<Array<float>>& bias, const std::optional<Array<float>>& forced,
           const Array<float>& mean, const std::string& order, uint32_t seed, bool gpu) {
            if (router.ndim() != 2 || x.ndim() != 2 || router.shape(1) != x.shape(1) ||
                router.shape(0) > 256 || k < 1 || k > router.shape(0) || mean.size() != router.shape(0) ||
                (bias && bias->size() != router.shape(0)) || (forced && forced->size() != 2 * k))
                throw InvalidArgument("the arrays' shapes do not fit");
            const Bench bench = make_bench(gpu, {}, order, seed);
            Memory memory(bench.gpu.get());
            auto put = [&](const Array<float>& a) { return memory.put(a.data(), a.size()); };
            Array<float> routes({x.shape(0), 2 * k}), gain(x.shape(0)), logits({x.shape(0), router.shape(0)});
            const RouteArgs a{.router = put(router),
                              .x = put(x),
                              .x_stride = x.shape(1),
                              .n_tokens = static_cast<int32_t>(x.shape(0)),
                              .n_cols = static_cast<int32_t>(x.shape(1)),
                              .n_experts = static_cast<int32_t>(router.shape(0)),
                              .k = static_cast<int32_t>(k),
                              .bias = bias ? put(*bias) : nullptr,
                              .forced = forced ? put(*forced) : nullptr,
                              .mean = put(mean),
                              .routes = put(routes),
                              .gain = put(gain),
                              .logits = put(logits)};
            Bench::check(bench.device().route(a));
            bench.finish();
            memory.get(routes.mutable_data(), a.routes, routes.size());
            memory.get(gain.mutable_data(), a.gain, gain.size());
            memory.get(logits.mutable_data(), a.logits, logits.size());
            return py::make_tuple(routes, gain, logits);
        },
        py::arg("router"), py::arg("x"), py::arg("k"), py::kw_only(), py::arg("bias") = py::none(),
        py::arg("forced") = py::none(), py::arg("mean"), py::arg("order") = "forward", py::arg("seed") = 0,
        py::arg("gpu") = false,
        "(routes [n_tokens, 2k], gain [n_tokens], logits [n_tokens, n_experts]); emulated, or on the GPU.");
    m.def("emulate_gpu", &emulate_gpu, py::arg("free_bytes"), py::arg("flash") = true,
          py::arg("rounds") = false,
          "From now on the CPU plays a GPU with so much free memory, kernels emulated; 0 ends it. flash: "
          "whether it has flash attention. rounds: whether products and attention round as ggml-cuda's.");
    m.def(
        "emulated_counts",
        [] {
            const EmulatedCounts c = emulated_counts();
            return std::map<std::string, int64_t>{
                {"launches", c.launches}, {"orders", c.orders}, {"waits", c.waits}, {"paces", c.paces}};
        },
        "Of all emulated devices: launches, orders of one stream after the other, waits of the host, and "
        "its looks at how far a batch is.");
    m.def("fail_emulated_launch", &fail_emulated_launch, py::arg("after"), py::arg("late"),
          "The launch after so many others fails, at once or as an asynchronous error.");
    m.def(
        "open_kernels",
        [](const std::string& path) {
            const ggml_backend_ptr backend(ggml_backend_cpu_init());
            open_kernels(path, backend.get());
        },
        py::arg("path"), "Loads a library of kernels, which gets no GPU.");
    m.def(
        "failing_launch",
        [] {
            const Bench bench = make_bench(true, {}, "forward", 0);
            RowsArgs a;
            a.n_tokens = 1;
            bench.gpu->check(bench.device().delta_rows(a, {.shared = size_t{1} << 30}));
        },
        "Asks the GPU for a launch that no GPU does.");
    m.def(
        "emulated_barrier",
        [](bool divergent, bool past_the_end) {
            grid::emulate({.threads = 64, .shared = 64}, [&] {
                if (divergent && grid::thread() == 3) return;
                if (past_the_end) grid::shared_memory()[64 + grid::thread()] = 0;
                grid::sync_block();
            });
        },
        py::arg("divergent"), py::arg("past_the_end"), "What the emulation itself must notice.");
    m.def(
        "rows_shape",
        [](int n_multiprocessors, int threads, size_t shared_block, size_t shared_all, int64_t width,
           int64_t n_positions) {
            const RowsShape s = rows_shape({.n_multiprocessors = n_multiprocessors,
                                            .threads = threads,
                                            .shared_block = shared_block,
                                            .shared_all = shared_all},
                                           width, n_positions);
            return py::make_tuple(s.n_blocks, s.n_warps, s.staged, s.shared);
        },
        "(blocks, warps of a block, staged, bytes of shared memory) of the row kernel on such a device.");
}

}  // namespace sardine::python
