#include "bindings.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Runtime of sardine_gguf on ggml and libllama; the public API is in sardine_gguf itself.";
    using namespace sardine::python;
    bind_errors(m);
    bind_gguf(m);
    bind_model(m);
    bind_session(m);
    bind_sampler(m);
    bind_system(m);
    bind_testing(m);
    bind_device_testing(m);
}
