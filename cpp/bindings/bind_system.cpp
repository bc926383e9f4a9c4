// Logging, and facts about the build and the machine.
#include <ggml-cpu.h>
#include <llama.h>

#include "bindings.h"
#include "log.h"
#include "native_work.h"
#include "offload/gpu.h"
#include "stack_thread.h"
#include "system_memory.h"

namespace sardine::python {
namespace {

PyObject* logger = nullptr;  // owned, and never released: libllama may speak until the process ends

void log_to_python(ggml_log_level level, const char* text) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    try {
        const py::handle callable(logger);
        callable(static_cast<int>(level), lenient_str(text));
    } catch (py::error_already_set& e) {
        e.discard_as_unraisable("sardine_gguf's log");
    }
}

py::dict build_info() {
    py::dict out;
    out["compiler"] =
#if defined(__clang__)
        "Clang " __clang_version__;
#elif defined(__GNUC__)
        "GCC " __VERSION__;
#else
        "unknown";
#endif
    out["ggml_version"] = ggml_version();
    out["ggml_commit"] = ggml_commit();
    py::dict features;  // what ggml was compiled for
    features["avx"] = ggml_cpu_has_avx() != 0;
    features["avx2"] = ggml_cpu_has_avx2() != 0;
    features["fma"] = ggml_cpu_has_fma() != 0;
    features["f16c"] = ggml_cpu_has_f16c() != 0;
    features["bmi2"] = ggml_cpu_has_bmi2() != 0;
    features["avx_vnni"] = ggml_cpu_has_avx_vnni() != 0;
    features["avx512f"] = ggml_cpu_has_avx512() != 0;
    features["avx512_vnni"] = ggml_cpu_has_avx512_vnni() != 0;
    features["avx512_bf16"] = ggml_cpu_has_avx512_bf16() != 0;
    features["amx_int8"] = ggml_cpu_has_amx_int8() != 0;
    out["ggml_features"] = features;
    return out;
}

}  // namespace

void bind_system(py::module_& m) {
    m.def(
        "set_logger",
        [](const py::object& callable, bool everything) {
            PyObject* old = logger;
            logger = callable.inc_ref().ptr();
            Py_XDECREF(old);
            log_sink = log_to_python;
            if (everything)
                llama_log_set(
                    [](ggml_log_level level, const char* text, void*) { log_to_python(level, text); },
                    nullptr);
        },
        py::arg("callable"), py::arg("everything"),
        "Sends what libllama says during our calls, or all that it and ggml say in this process, to "
        "callable(level, text).");
    m.def("wait_for_left_work", &wait_for_left_work, py::call_guard<py::gil_scoped_release>(),
          "Waits for interrupted work that goes on in the background.");
    py::module_::import("atexit").attr("register")(py::cpp_function(&end_threads));
    m.def("build_info", &build_info,
          "compiler, ggml_version, ggml_commit, and ggml_features: what ggml was compiled to use.");
    m.def(
        "find_gpus",
        [] {
            const GpuFacts f = find_gpus();
            py::list devices;
            for (const GpuFacts::Device& d : f.devices)
                devices.append(py::make_tuple(lenient_str(d.name), d.free, d.total));
            py::dict out;
            out["devices"] = devices;
            out["ggml_has_cuda"] = f.ggml_has_cuda;
            out["has_kernels"] = f.has_kernels;
            out["kernels_path"] = path_str(f.kernels_path);
            out["kernels_error"] = lenient_str(f.kernels_error);
            return out;
        },
        "devices (name, free and total bytes), ggml_has_cuda, has_kernels, kernels_path, "
        "kernels_error (\"\" if they can be loaded or are missing); opens no GPU.");
    m.def(
        "available_memory", [] { return available_memory(); },
        "Bytes that can be allocated without swapping.");
}

}  // namespace sardine::python
