#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <span>

#include "bindings.h"
#include "interruptible.h"
#include "sardine/error.h"
#include "sardine/sampler.h"
#include "sardine/session.h"

namespace sardine::python {
namespace {

constexpr float kUnlikely = -1e30f;  // finite, as logits are, and no bias makes up for it

std::vector<int32_t> narrow(const std::vector<int64_t>& tokens) {
    std::vector<int32_t> out(tokens.size());
    std::ranges::transform(tokens, out.begin(), narrow_token);
    return out;
}

// The keyword arguments of Sampler, one for each field of SamplerOptions.
SamplerOptions read_options(const py::kwargs& given) {
    SamplerOptions o;
    std::string name;
    const auto take = [&name](auto& field, const py::handle& value) {
        try {
            field = value.cast<std::remove_reference_t<decltype(field)>>();
        } catch (const py::cast_error&) {
            const std::string shown = py::repr(value).cast<std::string>().substr(0, 60);
            if (py::isinstance<py::int_>(value) || py::isinstance<py::float_>(value))
                throw InvalidArgument(name + " is " + shown + ", which is out of range");
            throw py::type_error(name + " is " + shown + ", which is of the wrong type");
        }
    };
    for (const auto& [key, value] : given) {
        name = key.cast<std::string>();
        if (name == "temperature")
            take(o.temperature, value);
        else if (name == "top_k")
            take(o.top_k, value);
        else if (name == "top_p")
            take(o.top_p, value);
        else if (name == "min_p")
            take(o.min_p, value);
        else if (name == "typical_p")
            take(o.typical_p, value);
        else if (name == "xtc_probability")
            take(o.xtc_probability, value);
        else if (name == "xtc_threshold")
            take(o.xtc_threshold, value);
        else if (name == "repeat_penalty")
            take(o.repeat_penalty, value);
        else if (name == "presence_penalty")
            take(o.presence_penalty, value);
        else if (name == "frequency_penalty")
            take(o.frequency_penalty, value);
        else if (name == "repeat_last_n")
            take(o.repeat_last_n, value);
        else if (name == "mirostat_mode")
            take(o.mirostat_mode, value);
        else if (name == "mirostat_tau")
            take(o.mirostat_tau, value);
        else if (name == "mirostat_eta")
            take(o.mirostat_eta, value);
        else if (name == "seed")
            take(o.seed, value);
        else if (name == "grammar")
            take(o.grammar, value);
        else if (name == "samplers")
            take(o.samplers, value);
        else if (name == "logit_bias") {
            std::vector<std::pair<int64_t, float>> pairs;
            take(pairs, value);
            for (const auto& [token, bias] : pairs) o.logit_bias.push_back({narrow_token(token), bias});
        } else
            throw py::type_error("Sampler has no option '" + name + "'");
    }
    return o;
}

}  // namespace

void bind_sampler(py::module_& m) {
    py::class_<Sampler>(m, "Sampler", "A chain of libllama's samplers with its random state.")
        .def(py::init([](std::shared_ptr<Model> model, const py::kwargs& options) {
                 const SamplerOptions o = read_options(options);
                 const NativeWork work;
                 return std::make_unique<Sampler>(std::move(model), o);
             }),
             py::arg("model").none(false), "For a model's logits.")
        .def(py::init([](int64_t n_vocab, const py::kwargs& options) {
                 return std::make_unique<Sampler>(n_vocab, read_options(options));
             }),
             py::arg("n_vocab"), "For any logits, float32 [n_vocab]; a grammar needs a model.")
        .def(
            "accept_prompt",
            [](Sampler& sampler, const std::vector<int64_t>& tokens) {
                sampler.accept_prompt(narrow(tokens));
            },
            py::arg("tokens"), "Takes tokens as the text so far, for the penalties.")
        .def(
            "allows", [](Sampler& sampler, int64_t token) { return sampler.allows(narrow_token(token)); },
            py::arg("token"), "Whether the grammar lets a token come next; True without one.")
        .def(
            "sample",
            [](Sampler& sampler, Session& s, Session::Claim claim, std::optional<int64_t> never) {
                const auto draw = [&](const StopPoint& stop) {
                    const std::span<const float> logits = s.last_logits();
                    if (!never || *never < 0 || *never >= static_cast<int64_t>(logits.size()))
                        return sampler.sample(logits, stop);
                    std::vector<float> others(logits.begin(), logits.end());
                    others[*never] = kUnlikely;
                    return sampler.sample(others, stop);
                };
                if (!sampler.has_grammar()) {
                    const auto lock = s.lock();
                    s.check_claim(claim);
                    const NativeWork work;
                    return draw({});
                }
                int32_t token = -1;
                run_interruptible(s, claim, [&] {
                    s.begin();
                    token = draw([&s] { s.stop_if_asked(); });
                });
                return token;
            },
            py::arg("session"), py::arg("claim") = py::none(), py::arg("never") = py::none(),
            "Draws a token from the session's last logits and accepts it; `never` only if a grammar or "
            "biases leave no other. Ctrl-C ends it, and cancel().")
        .def(
            "sample_logits",
            [](Sampler& sampler,
               const py::array_t<float, py::array::c_style | py::array::forcecast>& logits) {
                if (logits.ndim() != 1) throw py::value_error("logits must be [n_vocab]");
                const StopPoint stop = signal_check();
                const std::span<const float> row{logits.data(), static_cast<size_t>(logits.size())};
                const NativeWork work;
                return sampler.sample(row, stop);
            },
            py::arg("logits"), "The same with logits given, float32 [n_vocab].");
}

}  // namespace sardine::python
