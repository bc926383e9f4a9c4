#include "native_work.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#include "bindings.h"
#include "stack_thread.h"

namespace sardine::python {
namespace {

constexpr auto kWait = std::chrono::seconds(2);

thread_local int working_here = 0;

struct Threads {
    std::mutex mutex;
    std::condition_variable changed;
    int working = 0;
    std::atomic<bool> ending{false};
    std::thread::id ender;
};

// Never destroyed: threads may work while the process ends.
Threads& threads() {
    static Threads* all = [] {
        // A forked child has none of the other threads.
        pthread_atfork(nullptr, nullptr, [] {
            Threads& t = threads();
            new (&t) Threads;
            t.working = working_here;
        });
        return new Threads;
    }();
    return *all;
}

void count(int change) {
    Threads& t = threads();
    const std::lock_guard held(t.mutex);
    t.working += change;
    working_here += change;
    t.changed.notify_all();
}

[[noreturn]] void wait_forever() {
    for (;;) ::pause();
}

}  // namespace

bool thread_ends() {
    const Threads& t = threads();
    return t.ending && t.ender != std::this_thread::get_id();
}

NativeWork::NativeWork() {
    py::detail::get_internals();  // as pybind11's own does before the GIL is free
    count(1);
    state_ = PyEval_SaveThread();
}

NativeWork::~NativeWork() {
    if (thread_ends()) {
        count(-1);
        wait_forever();
    }
    PyEval_RestoreThread(state_);
    count(-1);
}

void end_threads() {
    Threads& t = threads();
    {
        const py::gil_scoped_release release;
        std::unique_lock held(t.mutex);
        t.ender = std::this_thread::get_id();
        t.ending = true;
        t.changed.wait_for(held, kWait, [&] { return t.working <= working_here; });
    }
#ifdef __GLIBC__
    // The last one to be registered is the first to be called.
    ::on_exit(
        [](int status, void*) {
            bool working = work_is_left();
            {
                Threads& all = threads();
                const std::lock_guard held(all.mutex);
                working = working || all.working > working_here;
            }
            if (!working) return;
            std::fflush(nullptr);
            ::_exit(status);
        },
        nullptr);
#else
    const py::gil_scoped_release release;
    wait_for_left_work();
#endif
}

}  // namespace sardine::python
