#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>

#include "bindings.h"
#include "fp8.h"
#include "gguf_file.h"
#include "native_work.h"
#include "quantize.h"
#include "sardine/model.h"

namespace sardine::python {
namespace {

template <typename T>
T at(const uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// The scalar (or string) at p; p moves behind it.
py::object take(GgufType type, const uint8_t*& p) {
    auto scalar = [&p]<typename T>(T) {
        const T v = at<T>(p);
        p += sizeof(T);
        return py::cast(v);
    };
    switch (type) {
        case GgufType::u8:
            return scalar(uint8_t{});
        case GgufType::i8:
            return scalar(int8_t{});
        case GgufType::u16:
            return scalar(uint16_t{});
        case GgufType::i16:
            return scalar(int16_t{});
        case GgufType::u32:
            return scalar(uint32_t{});
        case GgufType::i32:
            return scalar(int32_t{});
        case GgufType::f32:
            return scalar(float{});
        case GgufType::u64:
            return scalar(uint64_t{});
        case GgufType::i64:
            return scalar(int64_t{});
        case GgufType::f64:
            return scalar(double{});
        case GgufType::boolean:
            return py::bool_(*p++ != 0);
        case GgufType::string: {
            const auto n = at<uint64_t>(p);
            p += 8 + n;
            // Bytes that are not UTF-8 become surrogates, so that a copy of the file can have them again.
            PyObject* u = PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(p - n),
                                               static_cast<Py_ssize_t>(n), "surrogateescape");
            if (!u) throw py::error_already_set();
            return py::reinterpret_steal<py::str>(u);
        }
        case GgufType::array:
            break;
    }
    return py::none();
}

py::object value_of(const GgufValue& v) {
    const uint8_t* p = v.data;
    if (v.type != GgufType::array) return take(v.type, p);
    py::list out(v.count);
    for (uint64_t i = 0; i < v.count; ++i) out[i] = take(v.elem, p);
    return out;
}

py::tuple typed_value(const GgufValue& v) {
    std::string type = gguf_type_name(v.type);
    if (v.type == GgufType::array) type += std::string("[") + gguf_type_name(v.elem) + "]";
    return py::make_tuple(type, value_of(v));
}

// Python needs several times a value's bytes for it, so that a file of metadata alone would take much more
// memory than it is long. A vocabulary of 131072 tokens has about 0.7 million values, of 40 MB here.
void check_values(const GgufFile& f) {
    constexpr uint64_t kMaxValues = 1 << 22, kMaxBytes = 64 << 20;
    constexpr uint64_t kNumberBytes = 40, kStringBytes = 72;
    uint64_t n = 0, nbytes = 0;
    for (const auto& [key, v] : f.values()) {
        const bool text = v.type == GgufType::string || v.elem == GgufType::string;
        n += v.count;
        nbytes += v.count * (text ? kStringBytes : kNumberBytes);
    }
    if (n > kMaxValues || nbytes > kMaxBytes + f.bytes().size())
        f.fail("metadata", "the metadata holds " + std::to_string(n) + " values in a file of " +
                               std::to_string(f.bytes().size()) + " bytes, which is too many");
}

py::dict values_of(const GgufFile& f) {
    f.check_unchanged();
    check_values(f);
    py::dict out;
    for (const auto& [key, v] : f.values()) out[py::str(key)] = typed_value(v);
    return out;
}

py::object get(const GgufFile& f, const std::string& key, py::object fallback) {
    f.check_unchanged();
    check_values(f);
    const GgufValue* v = f.find(key);
    return v ? value_of(*v) : fallback;
}

// uint8 [n_rows, row bytes], or None where a value cannot be represented.
py::object encode_rows(const py::buffer& data, const std::string& stored, const std::string& type,
                       int64_t n_cols, int64_t head_rows,
                       const std::optional<py::array_t<float, py::array::c_style>>& importance,
                       int n_threads) {
    const py::buffer_info info = data.request();
    Rows rows{.stored = find_stored_type(stored), .n_cols = n_cols, .head_rows = head_rows};
    const size_t row_size = quantized_row_size(type, n_cols), stride = n_cols * stored_size(rows.stored);
    const size_t nbytes = static_cast<size_t>(info.size) * info.itemsize;
    if (!PyBuffer_IsContiguous(info.view(), 'C') || nbytes % stride != 0)
        throw InvalidArgument("expected contiguous rows of " + std::to_string(stride) + " bytes, found " +
                              std::to_string(nbytes) + " bytes");
    if (importance) {
        if (importance->ndim() != 1 || importance->shape(0) != n_cols)
            throw InvalidArgument("expected one importance for each of " + std::to_string(n_cols) +
                                  " columns");
        rows.importance = importance->data();
    }
    rows.src = info.ptr;
    rows.n_rows = static_cast<int64_t>(nbytes / stride);
    py::array_t<uint8_t> out({static_cast<py::ssize_t>(rows.n_rows), static_cast<py::ssize_t>(row_size)});
    uint8_t* dst = out.mutable_data();
    bool ok = false;
    {
        const NativeWork work;
        ok = quantize_rows(type, rows, dst, n_threads > 0 ? n_threads : default_threads());
    }
    if (!ok) return py::none();
    return std::move(out);
}

py::array_t<uint8_t> quantize(const py::array_t<float, py::array::c_style>& data, const std::string& type,
                              int n_threads) {
    if (data.ndim() != 2) throw InvalidArgument("quantize needs a 2-D float32 array");
    py::object out = encode_rows(data, "f32", type, data.shape(1), 0, std::nullopt, n_threads);
    if (out.is_none())
        throw InvalidArgument("a value is not finite or beyond the largest " + type + ", " +
                              std::to_string(largest_value(type)));
    return out;
}

py::array_t<float> dequantize(const py::array_t<uint8_t, py::array::c_style>& data, const std::string& type,
                              int64_t n_cols, int n_threads) {
    if (data.ndim() != 2 || data.shape(1) != static_cast<py::ssize_t>(quantized_row_size(type, n_cols)))
        throw InvalidArgument("dequantize needs a uint8 array [n_rows, bytes of a row]");
    const py::ssize_t rows = data.shape(0);
    py::array_t<float> out({rows, static_cast<py::ssize_t>(n_cols)});
    const uint8_t* src = data.data();
    float* dst = out.mutable_data();
    {
        const NativeWork work;
        dequantize_rows(type, src, dst, rows, n_cols, n_threads > 0 ? n_threads : default_threads());
    }
    return out;
}

void decode_fp8(const py::array_t<uint8_t, py::array::c_style>& data, const std::string& stored,
                const py::array_t<float, py::array::c_style>& scale,
                py::array_t<float, py::array::c_style> out, int64_t block_rows, int64_t block_cols,
                int64_t first_row, int n_threads) {
    if (data.ndim() != 2 || scale.ndim() != 2 || out.ndim() != 2 || out.shape(0) != data.shape(0) ||
        out.shape(1) != data.shape(1))
        throw InvalidArgument(
            "decode_fp8 needs data and out of one shape [n_rows, n_cols], and scales in two dimensions");
    const Fp8Rows rows{.src = data.data(),
                       .type = find_fp8_type(stored),
                       .n_rows = data.shape(0),
                       .n_cols = data.shape(1),
                       .first_row = first_row,
                       .scale = scale.data(),
                       .scale_rows = scale.shape(0),
                       .scale_cols = scale.shape(1),
                       .block_rows = block_rows,
                       .block_cols = block_cols};
    float* dst = out.mutable_data();  // throws where it is read-only
    const NativeWork work;
    sardine::decode_fp8(rows, dst, n_threads > 0 ? n_threads : default_threads());
}

}  // namespace

void bind_gguf(py::module_& m) {
    py::class_<GgufTensor>(m, "GgufTensor", "One tensor's entry in a GGUF header.")
        .def_readonly("name", &GgufTensor::name)
        .def_readonly("type", &GgufTensor::type, "ggml type id")
        .def_property_readonly(
            "shape",
            [](const GgufTensor& t) {
                py::tuple s(t.n_dims);
                for (int d = 0; d < t.n_dims; ++d) s[d] = t.ne[d];
                return s;
            },
            "dimensions in ggml's order, contiguous one first")
        .def_readonly("offset", &GgufTensor::offset, "bytes from the start of the file")
        .def_readonly("nbytes", &GgufTensor::nbytes);

    py::class_<GgufFile>(m, "GgufFile", "Strict reader of a GGUF header; raises FormatError.")
        .def(py::init<const std::string&>(), py::arg("path"))
        .def_property_readonly("path", [](const GgufFile& f) { return path_str(f.path()); })
        .def_property_readonly("alignment", &GgufFile::alignment)
        .def_property_readonly("data_offset", &GgufFile::data_offset)
        .def_property_readonly("tensors", &GgufFile::tensors)
        .def_property_readonly("kv", &values_of, "dict of key -> (type name, value)")
        .def("get", &get, py::arg("key"), py::arg("default") = py::none(), "One key's value.");

    m.def("quantize", &quantize, py::arg("data").noconvert(), py::arg("type"), py::arg("n_threads") = 0,
          "float32 [n_rows, n_cols] -> uint8 [n_rows, row bytes], by ggml's quantizer on n_threads threads "
          "(0: all).");
    m.def("dequantize", &dequantize, py::arg("data").noconvert(), py::arg("type"), py::arg("n_cols"),
          py::arg("n_threads") = 0, "The inverse of quantize: float32 [n_rows, n_cols].");
    m.def("decode_fp8", &decode_fp8, py::arg("data").noconvert(), py::arg("stored"),
          py::arg("scale").noconvert(), py::arg("out").noconvert(), py::kw_only(), py::arg("block_rows"),
          py::arg("block_cols"), py::arg("first_row") = 0, py::arg("n_threads") = 0,
          "Bytes [n_rows, n_cols] stored as f8_e4m3 or f8_e5m2 -> out float32 [n_rows, n_cols], row r and "
          "column c times scale[(first_row + r) // block_rows, c // block_cols], on n_threads threads (0: "
          "all).");
    m.def("encode_rows", &encode_rows, py::arg("data"), py::arg("stored"), py::arg("type"), py::kw_only(),
          py::arg("n_cols"), py::arg("head_rows") = 0, py::arg("importance").noconvert() = py::none(),
          py::arg("n_threads") = 0,
          "Rows of n_cols numbers stored as f64, f32, f16 or bf16 -> uint8 [n_rows, row bytes] of a ggml "
          "type, on "
          "n_threads threads (0: all). head_rows: the two halves of each so many rows are interleaved. "
          "importance: "
          "float32 [n_cols]. None where a value is not finite or beyond largest_value(type).");
    m.def("largest_value", &largest_value, py::arg("type"), "Largest magnitude of a weight of this type.");
    m.def("requires_importance", &requires_importance, py::arg("type"),
          "True for types that cannot be made without an importance matrix.");
    m.def("default_threads", &default_threads, "Processors that this process may run on.");
}

}  // namespace sardine::python
