// Long work without the GIL, which Ctrl-C stops all the same.
#pragma once

#include <chrono>
#include <optional>
#include <utility>

#include "bindings.h"
#include "native_work.h"
#include "sardine/error.h"
#include "sardine/progress.h"
#include "sardine/session.h"

namespace sardine::python {

// Python runs signal handlers only on its main thread, so only there it pays to ask.
inline bool on_main_thread() {
    const py::module_ threading = py::module_::import("threading");
    return threading.attr("current_thread")().is(threading.attr("main_thread")());
}

// Runs f without the GIL, holding the session; Ctrl-C (any Python signal handler that raises) stops it and is
// raised here. A claim is checked before other threads run, to whom a use that has ended should not look
// busy.
template <typename F>
void run_interruptible(Session& s, Session::Claim claim, const F& f) {
    const auto lock = s.lock();
    s.check_claim(claim);
    std::optional<py::error_already_set> raised;
    if (on_main_thread())
        s.set_interrupt([&raised] {
            py::gil_scoped_acquire gil;
            if (PyErr_CheckSignals() == 0) return false;
            raised.emplace();
            return true;
        });
    else
        s.set_interrupt(thread_ends);
    try {
        const NativeWork work;
        f();
    } catch (const Cancelled&) {
        s.set_interrupt(nullptr);
        if (raised) throw py::error_already_set(std::move(*raised));
        throw;
    } catch (...) {
        s.set_interrupt(nullptr);
        throw;
    }
    s.set_interrupt(nullptr);
}

// To be called without the GIL as often as one likes: every 100 ms it lets Python run signal handlers and
// throws what they raise; on other threads than Python's main one, Cancelled once the process ends.
inline StopPoint signal_check() {
    if (!on_main_thread())
        return [] {
            if (thread_ends()) throw Cancelled("the process ends");
        };
    using Clock = std::chrono::steady_clock;
    return [next = Clock::now()]() mutable {
        const auto now = Clock::now();
        if (now < next) return;
        next = now + std::chrono::milliseconds(100);
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
}

// The same for work that tells its progress, which goes to a Python callable unless that is None.
inline Progress python_progress(const py::object& callable) {
    const py::handle call(callable.is_none() ? nullptr : callable.ptr());
    return [stop = signal_check(), call](double done) {
        stop();
        if (!call) return;
        const py::gil_scoped_acquire gil;
        call(done);
    };
}

}  // namespace sardine::python
