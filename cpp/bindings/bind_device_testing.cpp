// The GPU's kernels in their emulation, for tests.
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

#include "bindings.h"
#include "delta_arrays.h"
#include "delta_upload.h"
#include "emulated_device.h"
#include "emulation.h"
#include "sardine/error.h"

namespace sardine::python {
namespace {

using namespace sardine::device;

// Runs what follows in a device that emulates `order`: "forward", "backward" or "random".
std::unique_ptr<Device> emulated(const Limits& limits, const std::string& order, uint32_t seed) {
    const std::map<std::string, grid::Order> orders = {{"forward", grid::Order::forward},
                                                       {"backward", grid::Order::backward},
                                                       {"random", grid::Order::random}};
    grid::set_emulation_order(orders.at(order), seed);
    auto device = open_emulated_device(limits);
    device->wait_for_backend();
    return device;
}

void check(const char* error) {
    if (error) throw Error(error);
}

// Copies of packed bytes at an aligned address, as a device would give.
class AlignedBytes {
 public:
    explicit AlignedBytes(const std::vector<uint8_t>& bytes) : memory_(bytes.size() + kAlignment) {
        const auto at = reinterpret_cast<uintptr_t>(memory_.data());
        data_ = memory_.data() + (kAlignment - at % kAlignment) % kAlignment;
        std::copy(bytes.begin(), bytes.end(), data_);
    }
    const uint8_t* data() const { return data_; }

 private:
    std::vector<uint8_t> memory_;
    uint8_t* data_;
};

Limits limits_of(int n_multiprocessors, size_t shared_block) {
    return {.n_multiprocessors = n_multiprocessors, .threads = 1024, .shared_block = shared_block,
            .shared_all = std::max<size_t>(shared_block + 1024, 64 << 10)};
}

// y [n_tokens, n_rows] of both row kernels' uses: the matrix alone upon `base`, or twice in one launch.
void run_rows(Device& device, const DeltaMatrix& m, RowsArgs a, int64_t n_tokens, std::vector<float>& y,
              std::vector<float>& twice, const std::vector<float>& base) {
    const int64_t width = std::min(m.block_columns, m.n_cols);
    const RowsShape shape = rows_shape(device.limits(), width, m.n_positions);
    const auto split = split_rows({m.row_ptr}, m.n_rows, m.n_blocks, shape.total_warps());
    const DeltaLayout at(m, shape.total_warps());
    const AlignedBytes one(pack_delta(m, at, split[0]));
    a.delta[0] = view_delta(m, at, one.data());
    a.y[0] = y.data();
    a.base = base.data();
    check(device.delta_rows(a, shape));

    const RowsShape both = rows_shape(device.limits(), width, 2 * m.n_positions);
    const auto halves = split_rows({m.row_ptr, m.row_ptr}, m.n_rows, m.n_blocks, both.total_warps());
    const DeltaLayout at2(m, both.total_warps());
    const AlignedBytes first(pack_delta(m, at2, halves[0])), second(pack_delta(m, at2, halves[1]));
    a.delta[0] = view_delta(m, at2, first.data());
    a.delta[1] = view_delta(m, at2, second.data());
    a.n_matrices = 2;
    a.base = nullptr;
    a.y[0] = twice.data();
    a.y[1] = twice.data() + n_tokens * m.n_rows;
    check(device.delta_rows(a, both));
}

void run_tiles(Device& device, const DeltaMatrix& m, const Array<float>& routes, const Array<float>& x,
               float* y) {
    const auto n_tokens = static_cast<int32_t>(x.shape(0)), k = static_cast<int32_t>(routes.shape(1) / 2);
    const auto n_cols = static_cast<int32_t>(m.n_cols);
    const DeltaLayout at(m, 1);
    const AlignedBytes packed(pack_delta(m, at, {0, static_cast<int32_t>(m.n_rows)}));
    const AlignedBytes half(std::vector<uint8_t>(2 * half_stride(n_cols) * n_tokens));
    std::vector<float> scale(n_tokens);
    auto* halves = reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(half.data()));
    check(device.halve({.x = x.data(), .x_stride = n_cols, .n_tokens = n_tokens, .n_cols = n_cols,
                        .half = halves, .scale = scale.data()}));
    const int32_t n_tiles = k > 0 ? max_tiles(n_tokens, m.n_experts) : (n_tokens + kTileTokens - 1) / kTileTokens;
    std::vector<int32_t> tokens(static_cast<size_t>(k) * n_tokens, -1);
    std::vector<Tile> tiles(static_cast<size_t>(k) * n_tiles);
    if (k > 0)
        check(device.group({.routes = routes.data(), .n_tokens = n_tokens, .n_experts = m.n_experts, .k = k,
                            .tokens = tokens.data(), .tiles = tiles.data()}));
    for (int32_t j = 0; j < std::max(k, 1); ++j)
        check(device.delta_tiles({.delta = device::view_delta(m, at, packed.data()), .y = y, .half = halves,
                                  .half_scale = scale.data(), .n_tokens = n_tokens, .n_tiles = n_tiles, .k = k,
                                  .j = j, .routes = routes.data(), .tokens = tokens.data() + j * n_tokens,
                                  .tiles = tiles.data() + j * n_tiles}));
}

}  // namespace

void bind_device_testing(py::module_& m) {
    m.def(
        "emulated_delta",
        [](const std::string& kernel, const Array<int32_t>& row_ptr, const Array<uint16_t>& col,
           const Array<uint8_t>& val, const std::string& type, const Array<float>& scale, int64_t n_rows,
           int64_t n_cols, int64_t block_columns, const Array<float>& routes, const Array<float>& x,
           const std::optional<Array<uint8_t>>& shared, const std::string& shared_type, float shared_scale,
           int n_multiprocessors, size_t shared_block, const std::string& order, uint32_t seed) {
            const DeltaMatrix d = python::view_delta(row_ptr, col, val, type, scale, n_rows, n_cols,
                                                     block_columns, shared, shared_type, shared_scale);
            check_routes(d, routes, x);
            const int64_t n_tokens = x.shape(0), k = routes.shape(1) / 2;
            const auto device = emulated(limits_of(n_multiprocessors, shared_block), order, seed);
            if (kernel == "tiles") {
                std::vector<float> y(n_tokens * n_rows);
                run_tiles(*device, d, routes, x, y.data());
                return std::vector<Array<float>>{Array<float>({n_tokens, n_rows}, y.data())};
            }
            // Outputs start as anything: what is not written shows.
            const float nan = std::numeric_limits<float>::quiet_NaN();
            std::vector<float> y(n_tokens * n_rows, nan), base(y.size(), 0.0f), twice(2 * y.size(), nan);
            for (size_t i = 0; i < base.size(); ++i) base[i] = static_cast<float>(i % 7) - 3.0f;
            RowsArgs a;
            a.x = x.data();
            a.x_stride = n_cols;
            a.n_tokens = static_cast<int32_t>(n_tokens);
            a.k = static_cast<int32_t>(k);
            a.routes = routes.data();
            run_rows(*device, d, a, n_tokens, y, twice, base);
            std::vector<Array<float>> out;
            for (const float* p : {y.data(), base.data(), twice.data(), twice.data() + y.size()})
                out.push_back(Array<float>({n_tokens, n_rows}, p));
            return out;
        },
        py::arg("kernel"), py::arg("row_ptr"), py::arg("col"), py::arg("val"), py::arg("type"),
        py::arg("scale"), py::kw_only(), py::arg("n_rows"), py::arg("n_cols"), py::arg("block_columns"),
        py::arg("routes"), py::arg("x"), py::arg("shared") = py::none(), py::arg("shared_type") = "f32",
        py::arg("shared_scale") = 1.0f, py::arg("n_multiprocessors") = 1, py::arg("shared_block") = 49152,
        py::arg("order") = "forward", py::arg("seed") = 0,
        "The deltas by the emulated kernel 'tiles', [y], or 'rows', [y upon a base, that base, y and y of two "
        "matrices in one launch].");
    m.def(
        "emulated_route",
        [](const Array<float>& router, const Array<float>& x, int64_t k,
           const std::optional<Array<float>>& bias, const std::optional<Array<float>>& forced,
           const Array<float>& mean, const std::string& order, uint32_t seed) {
            if (router.ndim() != 2 || x.ndim() != 2 || router.shape(1) != x.shape(1) || router.shape(0) > 256 ||
                k < 1 || k > router.shape(0) || mean.size() != router.shape(0) ||
                (bias && bias->size() != router.shape(0)) || (forced && forced->size() != 2 * k))
                throw InvalidArgument("the arrays' shapes do not fit");
            const auto device = emulated({}, order, seed);
            Array<float> routes({x.shape(0), 2 * k}), gain(x.shape(0)), logits({x.shape(0), router.shape(0)});
            check(device->route({.router = router.data(),
                                 .x = x.data(),
                                 .x_stride = x.shape(1),
                                 .n_tokens = static_cast<int32_t>(x.shape(0)),
                                 .n_cols = static_cast<int32_t>(x.shape(1)),
                                 .n_experts = static_cast<int32_t>(router.shape(0)),
                                 .k = static_cast<int32_t>(k),
                                 .bias = bias ? bias->data() : nullptr,
                                 .forced = forced ? forced->data() : nullptr,
                                 .mean = mean.data(),
                                 .routes = routes.mutable_data(),
                                 .gain = gain.mutable_data(),
                                 .logits = logits.mutable_data()}));
            return py::make_tuple(routes, gain, logits);
        },
        py::arg("router"), py::arg("x"), py::arg("k"), py::kw_only(), py::arg("bias") = py::none(),
        py::arg("forced") = py::none(), py::arg("mean"), py::arg("order") = "forward", py::arg("seed") = 0,
        "(routes [n_tokens, 2k], gain [n_tokens], logits [n_tokens, n_experts]) of the emulated kernel.");
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
