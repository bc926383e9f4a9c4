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

// Asks for huge pages within memory that is not touched yet; where there are none, small ones serve.
inline void advise_huge_pages(void* data, size_t size) {
    constexpr uintptr_t kSmall = 4096;
    const auto first = (reinterpret_cast<uintptr_t>(data) + kSmall - 1) / kSmall * kSmall;
    const auto end = (reinterpret_cast<uintptr_t>(data) + size) / kSmall * kSmall;
    if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

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
        advise_huge_pages(data, size);
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
