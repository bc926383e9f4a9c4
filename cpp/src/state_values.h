// Whether the numbers of a saved state are finite.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <cstring>
#include <span>

#include "kernels/q8_block.h"

namespace sardine {

template <typename Word>
inline bool finite_words(std::span<const uint8_t> bytes, Word exponent) {
    for (size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word)) {
        Word w;
        std::memcpy(&w, bytes.data() + i, sizeof w);
        if ((w & exponent) == exponent) return false;
    }
    return true;
}

// bytes: whole elements or, of q8_0, whole blocks.
inline bool all_finite(ggml_type type, std::span<const uint8_t> bytes) {
    if (type == GGML_TYPE_F32) return finite_words<uint32_t>(bytes, 0x7F800000);
    if (type == GGML_TYPE_F16) return finite_words<uint16_t>(bytes, 0x7C00);
    for (size_t i = 0; i + sizeof(Q8Block) <= bytes.size(); i += sizeof(Q8Block))
        if (!finite_words<uint16_t>(bytes.subspan(i, 2), 0x7C00)) return false;
    return true;
}

}  // namespace sardine
