// Memory that is read at random: in huge pages where the system gives them, so that the processor does not
// miss their translations.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace sardine {

class HugeBuffer {
 public:
    HugeBuffer() = default;
    HugeBuffer(const HugeBuffer& other) { grow(other.size_); }  // as large; what it holds is not copied
    HugeBuffer& operator=(const HugeBuffer& other) {
        grow(other.size_);
        return *this;
    }
    ~HugeBuffer() { std::free(data_); }

    // Makes it at least that large, and forgets what it held. Throws std::bad_alloc.
    void grow(size_t size) {
        if (size <= size_) return;
        size = rounded(size);
        auto* data = static_cast<uint8_t*>(std::aligned_alloc(kPage, size));
        if (!data) throw std::bad_alloc();
        ::madvise(data, size, MADV_HUGEPAGE);  // where it fails, small pages serve
        std::free(std::exchange(data_, data));
        size_ = size;
    }

    // What grow(size) takes.
    static size_t rounded(size_t size) { return (size + kPage - 1) / kPage * kPage; }

    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

 private:
    static constexpr size_t kPage = size_t{2} << 20;

    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace sardine
