// The registration functions of each file, and the few things that they share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace sardine::python {

namespace py = pybind11;

void bind_errors(py::module_& m);
void bind_gguf(py::module_& m);
void bind_model(py::module_& m);
void bind_session(py::module_& m);
void bind_sampler(py::module_& m);
void bind_system(py::module_& m);
void bind_testing(py::module_& m);
void bind_device_testing(py::module_& m);

// Bytes of a file that should be UTF-8; anything else becomes U+FFFD instead of an exception.
inline py::str lenient_str(std::string_view s) {
    PyObject* u = PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "replace");
    if (!u) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(u);
}

// A token id as Python has it; what does not fit 32 bits is no token either.
inline int32_t narrow_token(int64_t token) {
    return token < 0 || token > std::numeric_limits<int32_t>::max() ? -1 : static_cast<int32_t>(token);
}

// A path as Python has it: bytes that are not UTF-8 become surrogates, and os.fsencode turns them back.
inline py::str path_str(const std::string& path) {
    PyObject* u = PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size()));
    if (!u) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(u);
}

}  // namespace sardine::python
