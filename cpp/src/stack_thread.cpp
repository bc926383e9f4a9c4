#include "stack_thread.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "sardine/error.h"

namespace sardine {
namespace {

constexpr auto kAskEvery = std::chrono::milliseconds(50);

struct Job {
    std::function<void()> work;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable ended;
    bool done = false;
};

// Never destroyed: threads may end while the process does.
struct LeftWork {
    std::mutex mutex;
    std::condition_variable none;
    int count = 0;
};
LeftWork& left_work() {
    static LeftWork* all = [] {
        // A forked child has none of the threads.
        pthread_atfork(nullptr, nullptr, [] { new (&left_work()) LeftWork; });
        return new LeftWork;
    }();
    return *all;
}

void* run(void* argument) {
    std::unique_ptr<std::shared_ptr<Job>> owner(static_cast<std::shared_ptr<Job>*>(argument));
    {
        const std::shared_ptr<Job> job = std::move(*owner);
        owner.reset();
        try {
            job->work();
        } catch (...) {
            job->error = std::current_exception();
        }
        job->work = nullptr;  // what it owns goes here if nobody waits
        const std::lock_guard held(job->mutex);
        job->done = true;
        job->ended.notify_all();
    }
    LeftWork& all = left_work();
    const std::lock_guard held(all.mutex);
    if (--all.count == 0) all.none.notify_all();
    return nullptr;
}

pthread_t start(const std::shared_ptr<Job>& job, size_t stack_bytes) {
    pthread_attr_t attributes;
    pthread_t thread{};
    if (pthread_attr_init(&attributes) != 0) throw std::bad_alloc();
    int code = pthread_attr_setstacksize(&attributes, stack_bytes);
    auto owner = std::make_unique<std::shared_ptr<Job>>(job);
    if (code == 0) {
        {
            const std::lock_guard held(left_work().mutex);
            ++left_work().count;
        }
        // Signals are for the threads that were there before.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        code = pthread_create(&thread, &attributes, run, owner.get());
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (code == 0)
            owner.release();
        else {
            const std::lock_guard held(left_work().mutex);
            --left_work().count;
        }
    }
    pthread_attr_destroy(&attributes);
    if (code != 0)
        throw InsufficientMemory("no thread with a stack of " + std::to_string(stack_bytes) +
                                 " bytes can be made: free memory, or raise ulimit -v and -u");
    return thread;
}

// Waits for a thread that is done to have gone, as it would still count; lets go of one that is not.
struct Departure {
    explicit Departure(pthread_t t) : thread(t) {}
    Departure(const Departure&) = delete;
    Departure& operator=(const Departure&) = delete;
    ~Departure() {
        if (done)
            pthread_join(thread, nullptr);
        else
            pthread_detach(thread);
    }

    pthread_t thread;
    bool done = false;
};

}  // namespace

size_t stack_left() {
    // A stack's bounds do not change; asking for the main thread's reads /proc/self/maps.
    static thread_local const uintptr_t low = [] {
        pthread_attr_t attributes;
        void* address = nullptr;
        size_t size = 0;
        if (pthread_getattr_np(pthread_self(), &attributes) != 0) return UINTPTR_MAX;
        if (pthread_attr_getstack(&attributes, &address, &size) != 0) address = nullptr;
        pthread_attr_destroy(&attributes);
        return address ? reinterpret_cast<uintptr_t>(address) : UINTPTR_MAX;
    }();
    const auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return here > low ? here - low : 0;
}

void run_with_stack(size_t stack_bytes, std::function<void()> work, const StopPoint& stop) {
    const auto job = std::make_shared<Job>();
    job->work = std::move(work);
    Departure departure(start(job, stack_bytes));
    std::unique_lock held(job->mutex);
    while (!job->ended.wait_for(held, kAskEvery, [&] { return job->done; })) {
        if (!stop) continue;
        held.unlock();
        stop();
        held.lock();
    }
    departure.done = true;
    if (job->error) std::rethrow_exception(job->error);
}

bool work_is_left() {
    LeftWork& all = left_work();
    const std::lock_guard held(all.mutex);
    return all.count > 0;
}

void wait_for_left_work() {
    LeftWork& all = left_work();
    std::unique_lock held(all.mutex);
    all.none.wait(held, [&] { return all.count == 0; });
}

}  // namespace sardine
