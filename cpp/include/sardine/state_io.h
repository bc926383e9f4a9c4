// Where a session's state goes to and comes from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "sardine/error.h"

namespace sardine {

class StateWriter {
 public:
    explicit StateWriter(std::function<void(std::span<const uint8_t>)> sink) : sink_(std::move(sink)) {}
    void write(std::span<const uint8_t> bytes) { sink_(bytes); }

 private:
    std::function<void(std::span<const uint8_t>)> sink_;
};

class StateReader {
 public:
    virtual ~StateReader() = default;
    virtual const std::string& name() const = 0;
    virtual uint64_t size() const = 0;
    // Fills `out` from `offset`; both lie within size(). Throws IoError.
    virtual void read(uint64_t offset, std::span<uint8_t> out) = 0;
};

class MemoryStateReader : public StateReader {
 public:
    explicit MemoryStateReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
    const std::string& name() const override { return name_; }
    uint64_t size() const override { return bytes_.size(); }
    void read(uint64_t offset, std::span<uint8_t> out) override {
        std::ranges::copy(bytes_.subspan(offset, out.size()), out.begin());
    }

 private:
    std::span<const uint8_t> bytes_;
    std::string name_ = "the saved state";
};

// A regular file, open while this lives. Throws IoError, FormatError for anything but a regular file.
class FileStateReader : public StateReader {
 public:
    explicit FileStateReader(std::string path);
    ~FileStateReader() override;
    FileStateReader(const FileStateReader&) = delete;
    const std::string& name() const override { return path_; }
    uint64_t size() const override { return size_; }
    void read(uint64_t offset, std::span<uint8_t> out) override;

 private:
    std::string path_;
    uint64_t size_ = 0;
    int fd_ = -1;
};

}  // namespace sardine
