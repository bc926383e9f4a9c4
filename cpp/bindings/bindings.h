// The registration functions of each file, and the few things that they share.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

namespace sardine::python {

namespace py = pybind11;

void bind_errors(py::module_& m);
void bind_gguf(py::module_& m);
void bind_model(py::module_& m);
void bind_session(py::module_& m);
void bind_testing(py::module_& m);

// Bytes of a file that should be UTF-8; anything else becomes U+FFFD instead of an exception.
inline py::str lenient_str(std::string_view s) {
    PyObject* u = PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "replace");
    if (!u) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(u);
}

}  // namespace sardine::python
