#include <pybind11/stl.h>

#include "bindings.h"
#include "interruptible.h"
#include "kv_cache.h"
#include "sardine/model.h"

namespace sardine::python {
namespace {

py::dict hparams_dict(const Model& m) {
    const HParams& h = m.hparams();
    py::dict d;
    d["arch"] = h.arch;
    d["n_layer"] = h.n_layer;
    d["n_embd"] = h.n_embd;
    d["n_ff"] = h.n_ff;
    d["n_head"] = h.n_head;
    d["n_head_kv"] = h.n_head_kv;
    d["head_dim"] = h.head_dim;
    d["n_vocab"] = h.n_vocab;
    d["n_ctx_train"] = h.n_ctx_train;
    return d;
}

py::dict experts_dict(const Model& m) {
    const ExpertParams& e = m.experts();
    py::dict d;
    d["expert_count"] = e.expert_count;
    d["expert_used_count"] = e.expert_used_count;
    d["delta_mode"] = delta_mode_name(e.default_mode);
    d["layers"] = e.layers;
    py::list names;
    for (const std::string& n : e.names) names.append(lenient_str(n));
    d["names"] = names;
    return d;
}

}  // namespace

void bind_model(py::module_& m) {
    m.def(
        "repacked_tokens", [] { return repacked_tokens(); },
        "Tokens of a batch that repack's copies of Q4_K weights multiply on this processor, at most; 0 "
        "without.");
    py::class_<Model, std::shared_ptr<Model>>(m, "Model",
                                              "A mapped and checked model file; threads may share it.")
        .def(py::init([](const std::string& path, int n_threads, const std::optional<std::string>& adapter,
                         int64_t n_gpu_layers, bool repack, int64_t n_ctx, int64_t n_batch,
                         const std::string& kv_type, const py::object& progress) {
                 const Progress tell = python_progress(progress);
                 const NativeWork work;
                 return std::make_shared<Model>(
                     path, ModelOptions{.n_threads = n_threads,
                                        .adapter = adapter,
                                        .n_gpu_layers = n_gpu_layers,
                                        .plan = {.n_ctx = n_ctx,
                                                 .n_batch = n_batch,
                                                 .kv_type = kv_type == "f16"   ? GGML_TYPE_F16
                                                            : kv_type == "f32" ? GGML_TYPE_F32
                                                                               : GGML_TYPE_Q8_0},
                                        .repack = repack,
                                        .progress = tell});
             }),
             py::arg("path"), py::kw_only(), py::arg("n_threads") = 0, py::arg("adapter") = py::none(),
             py::arg("n_gpu_layers") = 0, py::arg("repack") = false, py::arg("n_ctx") = 0,
             py::arg("n_batch") = 512, py::arg("kv_type") = "f16", py::arg("progress") = py::none(),
             "progress(fraction) is called while the file is checked and copied to a GPU or repacked; what "
             "it raises ends "
             "the loading.")
        .def_property_readonly("n_gpu_layers", &Model::n_gpu_layers)
        .def_property_readonly("gpu", &Model::gpu)
        .def_property_readonly(
            "repacked",
            [](const Model& m) {
                const RepackedWeights* r = m.repacked();
                return r ? std::pair(r->n_tensors(), r->bytes()) : std::pair(int64_t{0}, 0.0);
            },
            "(matrices, bytes) of the copies that repack made; (0, 0.0) without it, or where no layout fits.")
        .def(
            "gpu_plan",
            [](const Model& m, double free_bytes, int64_t n_ctx, int64_t n_batch,
               const std::string& kv_type) {
                const ContextPlan plan{n_ctx, n_batch, parse_kv_type(kv_type, m.hparams())};
                return gpu_plan(m.weights(), m.hparams(), plan, free_bytes);
            },
            py::arg("free_bytes"), py::kw_only(), py::arg("n_ctx"), py::arg("n_batch") = 512,
            py::arg("kv_type") = "f16",
            "(layers that 'auto' would offload to a GPU with so much free memory, bytes that they and a "
            "context "
            "take). Needs no GPU.")
        .def_property_readonly(
            "gpu_bytes",
            [](const Model& m) { return m.device_weights() ? m.device_weights()->bytes() : 0.0; })
        .def_property_readonly("path", [](const Model& m) { return path_str(m.path()); })
        .def_property_readonly("file", &Model::file, py::return_value_policy::reference_internal)
        .def_property_readonly("adapter", &Model::adapter, py::return_value_policy::reference_internal)
        .def("adapter_fits_norms", &Model::adapter_fits_norms)
        .def_property_readonly("hparams", &hparams_dict)
        .def_property_readonly("experts", &experts_dict)
        .def_property_readonly("has_tokenizer", [](const Model& m) { return m.tokenizer().available(); })
        .def(
            "tokenize",
            [](const Model& m, const py::str& text, bool add_bos, bool special, const Session* session) {
                // Lone surrogates cannot be UTF-8; a replacement is what a terminal would have sent.
                const auto utf8 = py::reinterpret_steal<py::bytes>(
                    PyUnicode_AsEncodedString(text.ptr(), "utf-8", "replace"));
                if (!utf8) throw py::error_already_set();
                const std::string_view view = utf8;
                const StopPoint signals = signal_check();
                const uint64_t since = session ? session->n_cancels() : 0;
                const StopPoint stop = [&] {
                    signals();
                    if (session && session->n_cancels() != since)
                        throw Cancelled("the tokenization was cancelled");
                };
                const NativeWork work;
                return m.tokenizer().tokenize(view, add_bos, special, stop);
            },
            py::arg("text"), py::arg("add_bos"), py::arg("special"), py::arg("session") = py::none(),
            "Token ids of a text. Ctrl-C ends it, and cancel() of the session.")
        .def_property_readonly(
            "longest_piece", [](const Model& m) { return m.tokenizer().longest_piece(); },
            "Bytes of the longest token.")
        .def("check_unchanged", &Model::check_unchanged,
             "Raises ModelChanged if a file is not what it was when it was opened.")
        .def(
            "piece",
            [](const Model& m, int64_t token, bool special) {
                return py::bytes(m.tokenizer().piece(narrow_token(token), special));
            },
            py::arg("token"), py::arg("special") = false)
        .def_property_readonly("control_tokens",
                               [](const Model& m) {
                                   py::dict out;
                                   for (const int32_t t : m.tokenizer().control_tokens())
                                       out[lenient_str(m.tokenizer().text(t))] = t;
                                   return out;
                               })
        .def(
            "token_text",
            [](const Model& m, int64_t token) {
                return lenient_str(m.tokenizer().text(narrow_token(token)));
            },
            py::arg("token"))
        .def(
            "is_end", [](const Model& m, int64_t token) { return m.tokenizer().is_end(narrow_token(token)); },
            py::arg("token"))
        .def(
            "is_control",
            [](const Model& m, int64_t token) { return m.tokenizer().is_control(narrow_token(token)); },
            py::arg("token"))
        .def_property_readonly("bos", [](const Model& m) { return m.tokenizer().bos(); })
        .def_property_readonly("eos", [](const Model& m) { return m.tokenizer().eos(); })
        .def_property_readonly("add_bos", [](const Model& m) { return m.tokenizer().add_bos(); });

    m.def(
        "check_adapter",
        [](const GgufFile& file, int n_threads) {
            const Progress tell = python_progress(py::none());
            const NativeWork work;
            check_adapter(file, checked_threads(n_threads), tell);
        },
        py::arg("file"), py::arg("n_threads") = 0,
        "Checks all of an adapter file but for its base; raises FormatError.");
}

}  // namespace sardine::python
