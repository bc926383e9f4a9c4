#include "sardine/state_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sardine {
namespace {

[[noreturn]] void fail(const std::string& path) {
    const int code = errno;
    throw IoError(code, path, std::strerror(code));
}

}  // namespace

FileStateReader::FileStateReader(std::string path) : path_(std::move(path)) {
    // Not blocking: opening a FIFO would wait for a writer.
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) fail(path_);
    struct stat info{};
    const int rc = ::fstat(fd_, &info);
    if (rc == 0 && S_ISREG(info.st_mode)) {
        size_ = static_cast<uint64_t>(info.st_size);
        return;
    }
    const int code = rc != 0 ? errno : S_ISDIR(info.st_mode) ? EISDIR : 0;
    ::close(fd_);
    if (code == 0) throw FormatError(path_, "file", "this is not a regular file");
    throw IoError(code, path_, std::strerror(code));
}

FileStateReader::~FileStateReader() {
    ::close(fd_);
}

void FileStateReader::read(uint64_t offset, std::span<uint8_t> out) {
    while (!out.empty()) {
        const ssize_t n = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail(path_);
        if (n == 0) throw FormatError(path_, "size", "the file became shorter while it was read");
        out = out.subspan(static_cast<size_t>(n));
        offset += static_cast<uint64_t>(n);
    }
}

}  // namespace sardine
