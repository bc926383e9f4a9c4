// What the tests compare: each kernel path and the reference on arrays in the file's layout.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings.h"
#include "graph.h"
#include "kernels/attention.h"
#include "kernels/sparse_delta.h"
#include "parallel.h"
#include "sardine/error.h"
#include "system_memory.h"
#include "time_deltas.h"

namespace sardine::python {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

ValueType value_type(const std::string& name) {
    return name == "f32" ? ValueType::f32 : name == "f16" ? ValueType::f16 : ValueType::q8_0;
}

int64_t values_size(const std::string& type, int64_t n) {
    return type == "f32" ? 4 * n : type == "f16" ? 2 * n : (n + 31) / 32 * 34;
}

DeltaMatrix view_delta(const Array<int32_t>& row_ptr, const Array<uint16_t>& col, const Array<uint8_t>& val,
                       const std::string& type, const Array<float>& scale, int64_t n_rows, int64_t n_cols,
                       int64_t block_columns) {
    DeltaMatrix m{.n_rows = n_rows, .n_cols = n_cols};
    if (n_rows < 1 || n_cols < 1 || block_columns < 1 || block_columns > 65536)
        throw InvalidArgument("the matrix or its blocks are empty");
    m.block_columns = block_columns;
    m.n_blocks = (n_cols + block_columns - 1) / block_columns;
    m.n_positions = col.size();
    m.n_experts = static_cast<int32_t>(scale.size());
    m.type = value_type(type);
    const int64_t size = values_size(type, m.n_positions);
    if (row_ptr.size() != m.n_blocks * n_rows + 1 || m.n_experts < 1 || m.n_experts > 256 ||
        val.size() != size * m.n_experts)
        throw InvalidArgument("the arrays' sizes do not fit the matrix");
    m.row_ptr = row_ptr.data();
    m.col = col.data();
    m.val = val.data();
    m.val_stride = size;
    m.scale = scale.data();
    return m;
}

void validate(const DeltaMatrix& m) {
    validate_delta(m, 1, [](const char* part, const std::string& what) {
        throw InvalidArgument(std::string(part) + ": " + what);
    });
}

}  // namespace

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
            DeltaMatrix d = view_delta(row_ptr, col, val, type, scale, n_rows, n_cols, block_columns);
            if (shared) {
                if (shared->size() != values_size(shared_type, d.n_positions))
                    throw InvalidArgument("the shared array's size does not fit the matrix");
                d.shared = {value_type(shared_type), shared->data(), shared_scale};
            }
            validate(d);
            if (x.ndim() != 2 || x.shape(1) != n_cols || routes.ndim() != 2 || routes.shape(0) != x.shape(0))
                throw InvalidArgument("x must be [n_tokens, n_cols] and routes [n_tokens, 2k]");
            const int64_t n_tokens = x.shape(0), k = routes.shape(1) / 2;
            for (int64_t t = 0; t < n_tokens; ++t)
                for (int64_t j = 0; j < k; ++j)
                    if (!(routes.at(t, k + j) >= 0 && routes.at(t, k + j) < static_cast<float>(d.n_experts)))
                        throw InvalidArgument("routes name an expert that is not there");
            Array<float> y({n_tokens, n_rows});
            std::fill_n(y.mutable_data(), y.size(), 0.0f);
            const SparseDeltaArgs args{.delta = &d,
                                       .routes = {.data = routes.data(), .k = k, .stride = 2 * k},
                                       .n_tokens = n_tokens,
                                       .x = x.data(),
                                       .x_stride = n_cols,
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
            py::gil_scoped_release release;
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
    m.def("pretend_available_memory", &pretend_available_memory, py::arg("bytes"),
          "What available memory is from now on; 0 asks the system again.");
    m.def(
        "set_node_work",
        [](double quantized, double floats, double flash) {
            const NodeWork before = node_work();
            node_work() = {.quantized = quantized, .floats = floats, .flash = flash};
            return std::vector<double>{before.quantized, before.floats, before.flash};
        },
        py::arg("quantized"), py::arg("floats"), py::arg("flash"),
        "Sets the multiply-adds of a node at most; returns what they were.");
    m.def(
        "kernel_paths",
        [] {
            std::vector<std::string> out;
            for (const char* name : {"portable", "avx2", "avx512", "avx512bf16"})
                if (find_cpu_ops(name)) out.emplace_back(name);
            return out;
        },
        "Names of the kernel paths that this processor runs.");
    m.def("kernel_path", [] { return cpu_ops().name; }, "Name of the kernel path in use.");
    m.def(
        "route",
        [](const Array<float>& logits, int64_t k) {
            if (logits.ndim() != 1 || logits.size() < 1 || logits.size() > 256 || k < 1 || k > logits.size())
                throw InvalidArgument("route needs [n_experts] logits and 1 <= k <= n_experts");
            std::vector<float> out(2 * k);
            route_token(logits.data(), logits.size(), k, out.data());
            return out;
        },
        py::arg("logits"), py::arg("k"), "k weights, then k expert numbers.");
}

}  // namespace sardine::python
