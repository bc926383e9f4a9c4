// Checked longjmps refuse to change stacks, which is what they are used for here.
#undef _FORTIFY_SOURCE
#include "emulation.h"

#include <ggml.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "sardine/error.h"

namespace sardine::grid {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5;

enum class State { ready, at_warp, at_block, done };

// Lives for many blocks. Only its first entry goes through ucontext, whose switches cost system calls.
struct Fiber {
    ucontext_t context{};
    jmp_buf env;
    std::unique_ptr<unsigned char[]> stack;  // null: not entered yet
    State state = State::ready;
    Place place;
    int n_exchanges = 0;
};

struct Emulator {
    jmp_buf scheduler;
    std::vector<Fiber> fibers;
    std::vector<uint64_t> handed_over;  // [n_warps][2][kWarp]
    std::vector<unsigned char> shared;
    std::vector<int> order;
    const std::function<void()>* body = nullptr;
    Fiber* running = nullptr;
    Order kind = Order::forward;
    std::mt19937 random;

    void run_block(const Shape& shape, const Place& where);
    void run_ready();
    bool release(const Shape& shape);
};

Emulator& emulator() {
    thread_local Emulator e;
    return e;
}

__attribute__((noinline)) void wait_at(State state) {
    Emulator& e = emulator();
    e.running->state = state;
    if (_setjmp(e.running->env) == 0) _longjmp(e.scheduler, 1);
}

void start() {
    while (true) {
        (*emulator().body)();
        wait_at(State::done);
    }
}

// Until the fiber waits.
__attribute__((noinline)) void resume(Emulator& e, Fiber& f) {
    e.running = &f;
    if (_setjmp(e.scheduler) != 0) return;
    if (f.stack) _longjmp(f.env, 1);
    f.stack = std::make_unique<unsigned char[]>(kStackBytes);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, start, 0);
    setcontext(&f.context);
}

void Emulator::run_ready() {
    if (kind == Order::random) std::shuffle(order.begin(), order.end(), random);
    for (const int i : order) {
        Fiber& f = fibers[i];
        if (f.state != State::ready) continue;
        resume(*this, f);
    }
    running = nullptr;
}

// Lets those go on whose barrier everyone has reached; false if there are none.
bool Emulator::release(const Shape& shape) {
    auto all = [&](int begin, int end, State s) {
        return std::all_of(fibers.begin() + begin, fibers.begin() + end,
                           [s](const Fiber& f) { return f.state == s; });
    };
    bool any = false;
    for (int w = 0; w < shape.threads; w += kWarp) {
        if (!all(w, w + kWarp, State::at_warp)) continue;
        for (int i = w; i < w + kWarp; ++i) fibers[i].state = State::ready;
        any = true;
    }
    if (all(0, shape.threads, State::at_block)) {
        for (int i = 0; i < shape.threads; ++i) fibers[i].state = State::ready;
        any = true;
    }
    return any;
}

void Emulator::run_block(const Shape& shape, const Place& where) {
    // Shared memory starts with anything: NaN shows what is read before it is written.
    std::fill(shared.begin(), shared.end(), 0xFF);
    std::fill(shared.end() - kGuardBytes, shared.end(), kGuard);
    for (int i = 0; i < shape.threads; ++i) {
        Fiber& f = fibers[i];
        f.state = State::ready;
        f.n_exchanges = 0;
        f.place = where;
        f.place.thread = i;
    }
    do {
        run_ready();
    } while (release(shape));
    const auto done = std::count_if(fibers.begin(), fibers.begin() + shape.threads,
                                    [](const Fiber& f) { return f.state == State::done; });
    // Those that wait stay in the middle of this kernel for ever: the next one gets others.
    if (done != shape.threads) fibers = std::vector<Fiber>();
    if (done != shape.threads)
        throw Error("emulated kernel: " + std::to_string(shape.threads - done) + " of " +
                    std::to_string(shape.threads) +
                    " threads wait at a barrier that the others do not reach");
    if (std::any_of(shared.end() - kGuardBytes, shared.end(), [](unsigned char c) { return c != kGuard; }))
        throw Error("emulated kernel: wrote past its " + std::to_string(shape.shared) +
                    " bytes of shared memory");
}

}  // namespace

const Place& place() {
    return emulator().running->place;
}

void sync_block() {
    wait_at(State::at_block);
}

void sync_warp() {
    wait_at(State::at_warp);
}

// Two buffers in turn: a lane that is one call ahead does not write over what another still reads.
const uint64_t* exchange(uint64_t mine) {
    Emulator& e = emulator();
    Fiber& self = *e.running;
    const int thread = self.place.thread;
    const int turn = self.n_exchanges++ % 2;
    uint64_t* row = e.handed_over.data() + (thread / kWarp * 2 + turn) * kWarp;
    row[thread % kWarp] = mine;
    sync_warp();
    return row;
}

float half_to_float(uint16_t h) {
    return ggml_fp16_to_fp32(h);
}

void set_emulation_order(Order order, uint32_t seed) {
    emulator().kind = order;
    emulator().random.seed(seed);
}

void emulate(const Shape& s, const std::function<void()>& body) {
    if (s.threads < kWarp || s.threads > 1024 || s.threads % kWarp != 0 || s.x < 1 || s.y < 1 || s.z < 1)
        throw Error("emulated kernel: a grid of " + std::to_string(s.x) + " x " + std::to_string(s.y) +
                    " x " + std::to_string(s.z) + " blocks of " + std::to_string(s.threads) + " threads");
    Emulator& e = emulator();
    if (static_cast<int>(e.fibers.size()) < s.threads) e.fibers.resize(s.threads);
    e.handed_over.assign(s.threads * 2, 0);
    e.shared.resize(s.shared + kGuardBytes);
    e.order.resize(s.threads);
    for (int i = 0; i < s.threads; ++i) e.order[i] = e.kind == Order::backward ? s.threads - 1 - i : i;
    e.body = &body;
    for (int z = 0; z < s.z; ++z)
        for (int y = 0; y < s.y; ++y)
            for (int x = 0; x < s.x; ++x)
                e.run_block(s, {.n_threads = s.threads,
                                .block_x = x,
                                .block_y = y,
                                .block_z = z,
                                .n_blocks_x = s.x,
                                .shared = e.shared.data()});
}

}  // namespace sardine::grid
