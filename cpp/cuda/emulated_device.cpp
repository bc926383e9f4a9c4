#include "emulated_device.h"

#include <atomic>
#include <string>

#include "emulation.h"
#include "launches.h"
#include "sardine/error.h"

namespace sardine::device {
namespace {

std::atomic<int64_t> launches{0}, orders{0}, waits{0}, paces{0};
std::atomic<int64_t> failing_launch{-1};  // its number; -1: none
std::atomic<bool> fails_late{false};

class EmulatedDevice : public Launches<EmulatedDevice> {
 public:
    explicit EmulatedDevice(const Limits& limits) : limits_(limits) {}

    const Limits& limits() const override { return limits_; }
    const char* wait_for_backend() override {
        ours_ = true;
        ++orders;
        return nullptr;
    }
    const char* backend_waits() override {
        ours_ = false;
        ++orders;
        return nullptr;
    }
    const char* synchronize() override {
        ++waits;
        return failed();
    }
    const char* keep_pace() override {
        ++paces;
        return failed();
    }
    const char* begin_capture() override { return "the emulated device captures no graphs"; }
    const char* end_capture() override { return begin_capture(); }
    void abandon_capture() override {}
    const char* replay() override { return "the emulated device has no graph to run"; }

    template <typename Args>
    const char* run(void (*kernel)(Args), const GridShape& s, const Args& args) {
        if (launches++ == failing_launch) {
            failing_launch = -1;
            failed_ = true;
            return fails_late ? nullptr : failed();
        }
        if (!ours_) return "a launch is not ordered after what ggml computes";
        try {
            grid::emulate({.x = s.x, .y = s.y, .threads = s.threads, .shared = s.shared},
                          [&] { kernel(args); });
        } catch (const std::exception& e) {
            error_ = e.what();
            return error_.c_str();
        }
        return nullptr;
    }

 private:
    // Once, what a failed launch left.
    const char* failed() {
        if (!failed_) return nullptr;
        failed_ = false;
        return "the kernels: an emulated failure";
    }

    Limits limits_;
    bool failed_ = false;
    bool ours_ = false;
    std::string error_;
};

}  // namespace

EmulatedCounts emulated_counts() {
    return {launches, orders, waits, paces};
}

void fail_emulated_launch(int64_t after, bool late) {
    fails_late = late;
    failing_launch = launches + after;
}

std::unique_ptr<Device> open_emulated_device(const Limits& limits) {
    return std::make_unique<EmulatedDevice>(limits);
}

}  // namespace sardine::device
