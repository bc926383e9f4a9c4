// What libllama says while it loads a file.
#pragma once

#include <functional>
#include <string>

namespace sardine {

// Runs `load` and returns the errors that libllama logs meanwhile on this thread, and the text of an
// exception. Everything else goes to the log sink: this thread's once `load` has ended, when no lock is held.
std::string capture_errors(const std::function<void()>& load);

}  // namespace sardine
