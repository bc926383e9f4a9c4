// A 64-bit hash that finds damage: any change within one 8-byte word changes it. No defence against intent.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>

namespace sardine {

class Hash64 {
 public:
    // Pieces of any size; only their concatenation counts.
    void add(std::span<const uint8_t> bytes) {
        size_t i = 0;
        for (; i < bytes.size() && n_ % 8 != 0; ++i) add_byte(bytes[i]);
        for (; i + 8 <= bytes.size(); i += 8, n_ += 8) {
            std::memcpy(&word_, bytes.data() + i, 8);
            mix();
        }
        for (; i < bytes.size(); ++i) add_byte(bytes[i]);
    }

    uint64_t value() const {
        Hash64 last = *this;
        last.mix();
        last.word_ = n_;
        last.mix();
        return last.h_;
    }

 private:
    void add_byte(uint8_t b) {
        word_ |= static_cast<uint64_t>(b) << (n_ % 8 * 8);
        if (++n_ % 8 == 0) mix();
    }
    void mix() {
        h_ = std::rotl((h_ ^ word_) * 0x9E3779B97F4A7C15u, 31);
        h_ ^= h_ >> 29;
        word_ = 0;
    }
    uint64_t h_ = 0x5A2D1E0000000001u, word_ = 0, n_ = 0;
};

}  // namespace sardine
