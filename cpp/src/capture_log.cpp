#include "capture_log.h"

#include <llama.h>
#include <pthread.h>

#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "log.h"

namespace sardine {
namespace {

// libllama has one callback for the process, so one capture at a time sets it and puts it back.
std::mutex mutex;

class CaptureLog {
 public:
    CaptureLog() : lock_(mutex) {
        // A forked child has not the thread that captures: its lock and its callback go.
        static const int once = pthread_atfork(nullptr, nullptr, [] {
            new (&mutex) std::mutex;
            if (current) llama_log_set(current->callback_, current->user_data_);
            current = nullptr;
        });
        static_cast<void>(once);
        llama_log_get(&callback_, &user_data_);
        llama_log_set([](ggml_log_level level, const char* line,
                         void* self) { static_cast<CaptureLog*>(self)->take(level, line); },
                      this);
        current = this;
    }
    ~CaptureLog() {
        llama_log_set(callback_, user_data_);
        current = nullptr;
    }
    CaptureLog(const CaptureLog&) = delete;

    std::string errors;
    std::vector<std::pair<ggml_log_level, std::string>> others;

 private:
    void take(ggml_log_level level, const char* line) {
        if (std::this_thread::get_id() != thread_) {
            if (const LogSink sink = log_sink) sink(level, line);
        } else if (level == GGML_LOG_LEVEL_ERROR) {
            errors += line;
        } else {
            others.emplace_back(level, line);
        }
    }

    static inline CaptureLog* current = nullptr;
    std::lock_guard<std::mutex> lock_;
    std::thread::id thread_ = std::this_thread::get_id();
    ggml_log_callback callback_ = nullptr;
    void* user_data_ = nullptr;
};

}  // namespace

std::string capture_errors(const std::function<void()>& load) {
    std::string errors;
    std::vector<std::pair<ggml_log_level, std::string>> others;
    {
        CaptureLog log;
        try {
            load();
        } catch (const std::exception& e) {
            log.errors += e.what();
        }
        errors = std::move(log.errors);
        others = std::move(log.others);
    }
    // The sink may be anyone's code: it may wait for another thread, or load a model itself.
    if (const LogSink sink = log_sink)
        for (const auto& [level, line] : others) sink(level, line.c_str());
    return errors;
}

}  // namespace sardine
