// Exceptions of the runtime. The bindings turn each into the Python class of the same name.
#pragma once

#include <stdexcept>
#include <string>

namespace sardine {

// Base of everything thrown on purpose.
class Error : public std::runtime_error {
 public:
    using std::runtime_error::runtime_error;
};

// A file is not what it must be. `field` is the key, tensor or part that is wrong.
class FormatError : public Error {
 public:
    FormatError(std::string file, std::string field, const std::string& what)
        : Error(file + ": " + what), file_(std::move(file)), field_(std::move(field)) {}
    const std::string& file() const { return file_; }
    const std::string& field() const { return field_; }

 private:
    std::string file_, field_;
};

// A file cannot be opened or read.
class IoError : public Error {
 public:
    IoError(int code, std::string file, const std::string& what)
        : Error(what), code_(code), file_(std::move(file)) {}
    int code() const { return code_; }
    const std::string& file() const { return file_; }

 private:
    int code_;
    std::string file_;
};

// A caller's argument is out of range.
class InvalidArgument : public Error {
 public:
    using Error::Error;
};

// More tokens than the context holds; nothing was evaluated.
class ContextOverflow : public Error {
 public:
    using Error::Error;
};

// A request needs more memory than there is; nothing was allocated.
class InsufficientMemory : public Error {
 public:
    using Error::Error;
};

// A GPU was asked for that is not there or cannot be used, or it failed.
class DeviceError : public Error {
 public:
    using Error::Error;
};

// The session is evaluating in another thread.
class BusyError : public Error {
 public:
    using Error::Error;
};

// Another call has changed what the context holds since it was claimed.
class ContextChanged : public Error {
 public:
    using Error::Error;
};

// A file that is in use changed on the disk.
class ModelChanged : public Error {
 public:
    ModelChanged(std::string file, const std::string& what) : Error(what), file_(std::move(file)) {}
    const std::string& file() const { return file_; }

 private:
    std::string file_;
};

// A process that was forked uses what its parent made, which does not work there.
class ForkError : public Error {
 public:
    using Error::Error;
};

// A grammar has more ways to go on than are kept track of.
class GrammarTooComplex : public Error {
 public:
    using Error::Error;
};

// The evaluation was interrupted; the session is as it was before the interrupted batch.
class Cancelled : public Error {
 public:
    using Error::Error;
};

}  // namespace sardine
