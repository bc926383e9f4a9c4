// Where libllama's messages go while this library makes it speak.
#pragma once

#include <ggml.h>

#include <atomic>

namespace sardine {

// Called from any thread, with or without a newline at the end.
using LogSink = void (*)(ggml_log_level level, const char* text);

// Null (the default): nowhere.
inline std::atomic<LogSink> log_sink{nullptr};

}  // namespace sardine
