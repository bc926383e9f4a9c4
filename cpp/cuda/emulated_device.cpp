#include "emulated_device.h"

#include <string>

#include "emulation.h"
#include "launches.h"
#include "sardine/error.h"

namespace sardine::device {
namespace {

class EmulatedDevice : public Launches<EmulatedDevice> {
 public:
    explicit EmulatedDevice(const Limits& limits) : limits_(limits) {}

    const Limits& limits() const override { return limits_; }
    const char* wait_for_backend() override {
        ours_ = true;
        return nullptr;
    }
    const char* backend_waits() override {
        ours_ = false;
        return nullptr;
    }
    const char* synchronize() override { return nullptr; }
    const char* begin_capture() override { return "the emulated device captures no graphs"; }
    const char* end_capture() override { return begin_capture(); }
    const char* replay() override { return begin_capture(); }

    template <typename Args>
    const char* run(void (*kernel)(Args), const GridShape& s, const Args& args) {
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
    Limits limits_;
    bool ours_ = false;
    std::string error_;
};

}  // namespace

std::unique_ptr<Device> open_emulated_device(const Limits& limits) {
    return std::make_unique<EmulatedDevice>(limits);
}

}  // namespace sardine::device
