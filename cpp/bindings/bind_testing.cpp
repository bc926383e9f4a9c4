// What the tests compare: each kernel path and the reference on arrays in the file's layout.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings.h"
#include "cgroup_memory.h"
#include "delta_arrays.h"
#include "graph.h"
#include "kernels/attention.h"
#include "kernels/sparse_delta.h"
#include "parallel.h"
#include "sardine/error.h"
#include "system_memory.h"
#include "time_deltas.h"

namespace sardine::python {

void bind_testing(py::module_& m) {
    m.def("time_deltas", &time_deltas, py::arg("model"), py::arg("path"), py::kw_only(), py::arg("n_tokens"),
          py::arg("k"), py::arg("n_threads"), py::arg("repetitions"),
          py::call_guard<py::gil_scoped_release>(),
          "Seconds of each round of all delta ops of a model on random tokens.");
    m.def(
        "sparse_delta",
        [](const std::string& path, const Array<int32_t>& row_ptr, const Array<uint16_t>& col,
           const Array<uint8_t>& val, const std::string& type, const Array<float>& scale, int64_t n_rows,
           int64_t n_cols, int64_t block_columns, const Array<float>& routes, const Array<float>& x,
           int n_threads, const std::optional<Array<uint8_t>>& shared, const std::string& shared_type,
           float shared_scale) {
            const DeltaMatrix d = view_delta(row_ptr, col, val, type, scale, n_rows, n_cols, block_columns,
                                             shared, shared_type, shared_scale);
            check_routes(d, routes, x);
            const int64_t n_tokens = x.shape(0), k = routes.shape(1) / 2;
            Array<float> y({n_tokens, n_rows});
            std::fill_n(y.mutable_data(), y.size(), 0.0f);
            SparseDeltaArgs args{.delta = &d,
                                 .routes = {.data = routes.data(), .k = k, .stride = 2 * k},
                                 .n_tokens = n_tokens,
                                 .x = x.data(),
                                 .x_stride = n_cols,
                                 .tiles = nullptr,
                                 .y = y.mutable_data(),
                                 .y_stride = n_rows};
            if (path == "reference") {
                py::gil_scoped_release release;
                sparse_delta_add_reference(args);
                return y;
            }
            const CpuOps* ops = find_cpu_ops(path.c_str());
            if (!ops) throw InvalidArgument("kernel path '" + path + "' does not run here");
            std::vector<SparseScratch> scratch(n_threads);
            for (SparseScratch& s : scratch) s.reserve(d, n_tokens, k);
            const TileOps& tiles = tile_ops(d, *ops);
            std::vector<uint8_t> packed(packed_bytes(tiles, n_cols, n_tokens, k, d.n_experts));
            args.tiles = packed_begin(packed.data());
            py::gil_scoped_release release;
            if (n_tokens >= kMinTileTokens)
                parallel_for(n_threads, n_threads, 1, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i)
                        pack_tiles(tiles, {args.routes, n_tokens, d.n_experts}, args.x, args.x_stride, n_cols,
                                   static_cast<int>(i), n_threads, scratch[i].tiles,
                                   packed_begin(packed.data()));
                });
            parallel_for(n_threads, n_threads, 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i)
                    sparse_delta_add(args, *ops, static_cast<int>(i), n_threads, scratch[i]);
            });
            return y;
        },
        py::arg("path"), py::arg("row_ptr"), py::arg("col"), py::arg("val"), py::arg("type"),
        py::arg("scale"), py::kw_only(), py::arg("n_rows"), py::arg("n_cols"), py::arg("block_columns"),
        py::arg("routes"), py::arg("x"), py::arg("n_threads") = 1, py::arg("shared") = py::none(),
        py::arg("shared_type") = "f32", py::arg("shared_scale") = 1.0f,
        "y [n_tokens, n_rows] of one kernel path: 'reference', 'portable', 'avx2' or 'avx512'. Routes of "
        "width 0 "
        "add the shared part alone.");
    m.def(
        "attention",
        [](const std::string& path, const Array<float>& q, const py::array& k, const py::array& v,
           const Array<int32_t>& positions, float scale, int n_threads) {
            const bool half = k.dtype().kind() == 'f' && k.itemsize() == 2;
            const bool blocks = k.dtype().equal(py::dtype::of<uint8_t>());
            const bool same =
                k.dtype().equal(v.dtype()) && (half || blocks || k.dtype().equal(py::dtype::of<float>()));
            if (!same || q.ndim() != 3 || k.ndim() != 3 || v.ndim() != 3 || k.nbytes() != v.nbytes() ||
                !(k.flags() & v.flags() & py::array::c_style))
                throw InvalidArgument(
                    "q must be [n_tokens, n_heads, dim]; k and v [n_kv, n_heads_kv, dim] f16 or f32, or "
                    "[n_kv, n_heads_kv, bytes] q8_0");
            AttentionArgs a{.q = q.data(),
                            .out = nullptr,
                            .k = static_cast<const uint8_t*>(k.data()),
                            .v = static_cast<const uint8_t*>(v.data()),
                            .type = half     ? KvType::f16
                                    : blocks ? KvType::q8_0
                                             : KvType::f32,
                            .row_bytes = static_cast<size_t>(k.strides(0)),
                            .positions = positions.data(),
                            .n_tokens = q.shape(0),
                            .n_heads = q.shape(1),
                            .n_heads_kv = k.shape(1),
                            .dim = q.shape(2),
                            .scale = scale};
            const CpuOps* ops = find_cpu_ops(path.c_str());
            if (!ops) throw InvalidArgument("kernel path '" + path + "' does not run here");
            if (k.shape(2) * k.itemsize() != kv_bytes(a.type, a.dim) || (blocks && a.dim % kQ8Block != 0) ||
                a.n_heads_kv < 1 || a.n_heads % a.n_heads_kv != 0 || positions.size() != a.n_tokens)
                throw InvalidArgument("the arrays' shapes do not fit");
            for (int64_t t = 0; t < a.n_tokens; ++t)
                if (a.positions[t] < 0 || a.positions[t] >= k.shape(0))
                    throw InvalidArgument("a position is outside the cache");
            Array<float> out({a.n_tokens, a.n_heads, a.dim});
            a.out = out.mutable_data();
            py::gil_scoped_release release;
            parallel_for(n_threads, n_threads, 1, [&](int64_t begin, int64_t end) {
                std::vector<float> scratch(attention_scratch(a.n_heads, a.n_heads_kv));
                for (int64_t i = begin; i < end; ++i)
                    attention(a, *ops, static_cast<int>(i), n_threads, scratch.data());
            });
            return out;
        },
        py::arg("path"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("positions"), py::kw_only(),
        py::arg("scale"), py::arg("n_threads") = 1,
        "Causal attention [n_tokens, n_heads, dim] of one kernel path; a token sees the rows 0 to its "
        "position.");
    m.def("cgroup_memory", &cgroup_memory, py::arg("mount"), py::arg("groups"),
          "Bytes that the control groups mounted at a folder and named in a file leave.");
    m.def("pretend_available_memory", &pretend_available_memory, py::arg("bytes"),
          "What available memory is from now on; 0 asks the system again.");
    m.def(
        "set_node_work",
        [](double quantized, double floats, double flash, double sparse) {
            const NodeWork before = node_work();
            node_work() = {.quantized = quantized, .floats = floats, .flash = flash, .sparse = sparse};
            return std::vector<double>{before.quantized, before.floats, before.flash, before.sparse};
        },
        py::arg("quantized"), py::arg("floats"), py::arg("flash"), py::arg("sparse") = 1e18,
        "Sets the multiply-adds of a node at most; returns what they were.");
    m.def(
        "kernel_paths",
        [] {
            std::vector<std::string> out;
            for (const char* name : {"portable", "avx2", "avx512", "avx512bf16", "neon"})
                if (find_cpu_ops(name)) out.emplace_back(name);
            return out;
        },
        "Names of the kernel paths that this processor runs.");
    m.def("kernel_path", [] { return cpu_ops().name; }, "Name of the kernel path in use.");
    m.def(
        "route",
        [](const Array<float>& logits, int64_t k, std::vector<float> weights, std::vector<float> bias) {
            if (logits.ndim() != 1 || logits.size() < 1 || logits.size() > 256 || k < 1 || k > logits.size())
                throw InvalidArgument("route needs [n_experts] logits and 1 <= k <= n_experts");
            const Steering steering = checked_steering({std::move(weights), std::move(bias)}, logits.size());
            k = routed(steering, k);
            std::vector<float> out(2 * k);
            route_token(logits.data(), logits.size(), k, out.data(), steering);
            return out;
        },
        py::arg("logits"), py::arg("k"), py::kw_only(), py::arg("weights") = std::vector<float>{},
        py::arg("bias") = std::vector<float>{},
        "Weights, then expert numbers: k of them, or what the steering leaves.");
}

}  // namespace sardine::python
