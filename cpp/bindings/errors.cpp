#include "bindings.h"
#include "sardine/error.h"

namespace sardine::python {
namespace {

void set_error(const char* name, const char* what) {
    PyErr_SetString(py::module_::import("sardine_gguf.errors").attr(name).ptr(), what);
}

}  // namespace

// The classes live in sardine_gguf/errors.py, so that Python code can use them without the extension.
void bind_errors(py::module_&) {
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const FormatError& e) {
            py::object cls = py::module_::import("sardine_gguf.errors").attr("FormatError");
            py::object error = cls(lenient_str(e.what()), py::arg("file") = path_str(e.file()),
                                   py::arg("field") = lenient_str(e.field()));
            PyErr_SetObject(cls.ptr(), error.ptr());
        } catch (const IoError& e) {
            py::tuple args = py::make_tuple(e.code(), lenient_str(e.what()), path_str(e.file()));
            PyErr_SetObject(PyExc_OSError, args.ptr());
        } catch (const InvalidArgument& e) {
            PyErr_SetString(PyExc_ValueError, e.what());
        } catch (const ContextOverflow& e) {
            set_error("ContextOverflow", e.what());
        } catch (const InsufficientMemory& e) {
            set_error("InsufficientMemory", e.what());
        } catch (const DeviceError& e) {
            set_error("DeviceError", e.what());
        } catch (const BusyError& e) {
            set_error("BusyError", e.what());
        } catch (const ContextChanged& e) {
            set_error("ContextChanged", e.what());
        } catch (const ModelChanged& e) {
            py::object cls = py::module_::import("sardine_gguf.errors").attr("ModelChanged");
            py::object error = cls(lenient_str(e.what()), py::arg("file") = path_str(e.file()));
            PyErr_SetObject(cls.ptr(), error.ptr());
        } catch (const ForkError& e) {
            set_error("ForkError", e.what());
        } catch (const GrammarTooComplex& e) {
            set_error("GrammarTooComplex", e.what());
        } catch (const Cancelled& e) {
            set_error("Cancelled", e.what());
        } catch (const Error& e) {
            set_error("SardineError", e.what());
        }
    });
}

}  // namespace sardine::python
