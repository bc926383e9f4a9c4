#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bindings.h"
#include "interruptible.h"
#include "sardine/session.h"
#include "sardine/state_io.h"

namespace sardine::python {
namespace {

// (weights, bias), as Session.steering has them.
using Settings = std::pair<std::vector<float>, std::vector<float>>;

Steering checked(const Session& s, const Settings& own) {
    return checked_steering({.weights = own.first, .bias = own.second}, s.model().experts().expert_count);
}

py::tuple settings_of(const Steering& s) {
    return py::make_tuple(s.weights, s.bias);
}

// Pieces go to a Python callable as bytes; what it raises ends the saving.
void save(Session& s, const py::function& write, const Settings& own) {
    StateWriter out([&write](std::span<const uint8_t> piece) {
        const py::gil_scoped_acquire gil;
        write(py::memoryview::from_memory(piece.data(), static_cast<py::ssize_t>(piece.size())));
    });
    run_interruptible(s, {}, [&] { s.save(out, checked(s, own)); });
}

py::bytes save_bytes(Session& s, const Settings& settings) {
    const Steering own = checked(s, settings);
    py::bytes out;
    uint8_t *at = nullptr, *end = nullptr;
    run_interruptible(s, {}, [&] {
        const auto size = static_cast<py::ssize_t>(s.state_bytes(own));
        {
            const py::gil_scoped_acquire gil;
            out = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, size));
            if (!out) throw py::error_already_set();
            at = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(out.ptr()));
            end = at + size;
        }
        StateWriter writer([&at, end](std::span<const uint8_t> piece) {
            if (piece.size() > static_cast<size_t>(end - at)) throw Error("the state is longer than it was");
            at = std::ranges::copy(piece, at).out;
        });
        s.save(writer, own);
    });
    return out;
}

py::tuple load_bytes(Session& s, const py::buffer& state) {
    const py::buffer_info info = state.request();
    if (info.itemsize != 1 || info.ndim != 1 || (info.size > 0 && info.strides[0] != 1))
        throw InvalidArgument("a state must be bytes, one after the other");
    MemoryStateReader in({static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size)});
    Steering own;
    run_interruptible(s, {}, [&] { own = s.load(in); });
    return settings_of(own);
}

py::tuple load_file(Session& s, const std::string& path) {
    Steering own;
    run_interruptible(s, {}, [&] {
        FileStateReader in(path);
        own = s.load(in);
    });
    return settings_of(own);
}

py::dict counts(Session& s) {
    const Session::Counts c = s.facts().counts;
    py::dict d;
    d["tokens"] = c.tokens;
    d["batches"] = c.batches;
    d["graphs"] = c.graphs;
    d["nodes"] = c.nodes;
    return d;
}

std::vector<int32_t> narrow(const std::vector<int64_t>& tokens) {
    std::vector<int32_t> out(tokens.size());
    std::ranges::transform(tokens, out.begin(), narrow_token);
    return out;
}

py::array_t<float> eval(Session& s, const std::vector<int64_t>& ids, std::optional<uint64_t> since,
                        Session::Claim claim) {
    const std::vector<int32_t> tokens = narrow(ids);
    {
        const auto lock = s.lock();
        s.check_claim(claim);
        s.check(tokens);  // before the result, which may be large, is allocated
    }
    const int64_t n_vocab = s.model().hparams().n_vocab;
    py::array_t<float> out({static_cast<py::ssize_t>(tokens.size()), static_cast<py::ssize_t>(n_vocab)});
    float* logits = out.mutable_data();
    run_interruptible(s, claim, [&] { s.eval(tokens, logits, since, claim); });
    return out;
}

py::tuple routing(Session& s, Session::Claim claim) {
    const auto lock = s.lock();
    s.check_claim(claim);
    const Session::Routing& r = s.routing();
    const std::vector<py::ssize_t> shape{r.n_layers, r.n_tokens, r.k};
    return py::make_tuple(py::array_t<int32_t>(shape, r.ids.data()),
                          py::array_t<float>(shape, r.weights.data()));
}

py::array_t<float> router_logits(Session& s) {
    const auto lock = s.lock();
    const Session::Routing& r = s.routing();
    const int64_t rows = r.n_layers * r.n_tokens;
    const auto n = rows ? static_cast<int64_t>(r.logits.size()) / rows : 0;
    return py::array_t<float>(std::vector<py::ssize_t>{r.n_layers, r.n_tokens, n}, r.logits.data());
}

void steer(Session& s, std::vector<float> weights, std::vector<float> bias, Session::Claim claim) {
    const auto lock = s.lock();
    s.check_claim(claim);
    const NativeWork work;
    s.steer({.weights = std::move(weights), .bias = std::move(bias)}, claim);
}

py::tuple steering(Session& s) {
    const auto lock = s.lock();
    return settings_of(s.steering());
}

}  // namespace

void bind_session(py::module_& m) {
    py::class_<Session>(m, "Session",
                        "One context on a model. Calls raise BusyError if another thread is inside.")
        .def(py::init([](std::shared_ptr<Model> model, int64_t n_ctx, int64_t n_batch, int n_threads,
                         const std::string& kv_type, const std::string& delta_mode) {
                 const SessionOptions options{.n_ctx = n_ctx,
                                              .n_batch = n_batch,
                                              .n_threads = n_threads,
                                              .kv_type = kv_type,
                                              .mode = parse_delta_mode(delta_mode)};
                 const NativeWork work;
                 return std::make_unique<Session>(std::move(model), options);
             }),
             py::arg("model"), py::kw_only(), py::arg("n_ctx") = 0, py::arg("n_batch") = 512,
             py::arg("n_threads") = 0, py::arg("kv_type") = "f16", py::arg("delta_mode") = "off")
        .def_property_readonly("n_ctx", &Session::n_ctx)
        .def_property_readonly("n_batch", &Session::n_batch)
        .def_property_readonly("n_threads", &Session::n_threads)
        .def_property_readonly("memory_bytes", [](const Session& s) { return s.facts().memory_bytes; })
        .def_property_readonly("n_tokens", [](const Session& s) { return s.facts().n_tokens; })
        .def(
            "claim",
            [](Session& s) {
                const auto lock = s.lock();
                return s.claim();
            },
            "A number for calls that belong together: as their `claim` it makes them raise ContextChanged "
            "once "
            "another call has changed the context or claimed it.")
        .def_property_readonly("tokens",
                               [](Session& s) {
                                   const auto lock = s.lock();
                                   return s.tokens();
                               })
        .def("eval", &eval, py::arg("tokens"), py::arg("since") = py::none(), py::arg("claim") = py::none(),
             "Appends tokens; logits of each, float32 [n_tokens, n_vocab]. `since` as in decode.")
        .def(
            "decode",
            [](Session& s, const std::vector<int64_t>& ids, std::optional<uint64_t> since,
               Session::Claim claim) {
                const std::vector<int32_t> tokens = narrow(ids);
                run_interruptible(s, claim, [&] { s.eval(tokens, nullptr, since, claim); });
            },
            py::arg("tokens"), py::arg("since") = py::none(), py::arg("claim") = py::none(),
            "Appends tokens; keeps only the last one's logits, for a Sampler. Raises Cancelled if cancel() "
            "was "
            "called since n_cancels was `since`.")
        .def("routing", &routing, py::arg("claim") = py::none(),
             "(ids int32, weights float32) of the last eval, [n_layers, n_tokens, top_k].")
        .def("router_logits", &router_logits,
             "The router's logits of the last eval, float32 [n_layers, n_tokens, n_experts]; none per token "
             "unless they are kept.")
        .def(
            "keep_router_logits",
            [](Session& s, bool keep) {
                const auto lock = s.lock();
                s.keep_router_logits(keep);
            },
            py::arg("keep"), "Whether evals keep the router's logits, for router_logits().")
        .def(
            "steer", &steer, py::kw_only(), py::arg("weights"), py::arg("bias"),
            py::arg("claim") = py::none(),
            "Forces experts to weights or biases the router's logits, [n_experts] or empty. A change empties "
            "the context.")
        .def_property_readonly("steering", &steering, "(weights, bias), of which at least one is empty.")
        .def(
            "last_logits",
            [](Session& s, Session::Claim claim) {
                const auto lock = s.lock();
                s.check_claim(claim);
                return py::array_t<float>(static_cast<py::ssize_t>(s.last_logits().size()),
                                          s.last_logits().data());
            },
            py::arg("claim") = py::none(),
            "Copy of the logits after the last token, float32 [n_vocab], or empty.")
        .def(
            "truncate",
            [](Session& s, int64_t n, Session::Claim claim) {
                const auto lock = s.lock();
                s.truncate(n, claim);
            },
            py::arg("n_tokens"), py::arg("claim") = py::none(), "Forgets all but the first n_tokens.")
        .def(
            "save", &save, py::arg("write"), py::arg("own") = Settings(),
            "Calls write(memoryview) with the pieces of the state. `own` is kept in it for the one who loads "
            "it: (weights, bias) of a steering, which may differ from the one that made the tokens.")
        .def("save_bytes", &save_bytes, py::arg("own") = Settings(), "The state as bytes.")
        .def("load_bytes", &load_bytes, py::arg("state"),
             "Takes the place of a context from its saved state; returns what was `own`.")
        .def("load_file", &load_file, py::arg("path"), "The same from a file.")
        .def_property_readonly(
            "counts", &counts,
            "Since the context was made: tokens and batches evaluated, graphs built for them; nodes of the "
            "last batch's graph.")
        .def(
            "set_profile",
            [](Session& s, bool on) {
                const auto lock = s.lock();
                s.set_profile(on);
            },
            py::arg("on"), "Measures from now on, or no longer, where the time of evaluations goes.")
        .def(
            "profile",
            [](Session& s) {
                const auto lock = s.lock();
                return s.profile();
            },
            "Nanoseconds by kind of graph node, layers together, since set_profile(True).")
        .def("cancel", &Session::cancel, "Stops the running eval, from any thread.")
        .def_property_readonly("n_cancels", &Session::n_cancels, "How often cancel() was called.");
}

}  // namespace sardine::python
