// Loads of 8 floats by 16-bit index, for the files built with AVX2 or more. On AMD's processors vgather costs
// twice as much as single loads, on Intel's with their mitigations more.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sardine {

// Compilers load into a register of its own first, which costs an instruction in three.
template <int kLane>
static inline __m128 insert_lane(__m128 v, const float* from) {
    __m128 out;
    asm("vinsertps %3, %2, %1, %0" : "=x"(out) : "x"(v), "m"(*from), "n"(kLane << 4));
    return out;
}

static inline __m128 gather4(const float* x, const uint16_t* index) {
    uint32_t low, high;
    std::memcpy(&low, index, sizeof low);
    std::memcpy(&high, index + 2, sizeof high);
    __m128 v = _mm_load_ss(x + static_cast<uint16_t>(low));
    v = insert_lane<1>(v, x + (low >> 16));
    v = insert_lane<2>(v, x + static_cast<uint16_t>(high));
    return insert_lane<3>(v, x + (high >> 16));
}

static inline __m256 gather8(const float* x, const uint16_t* index) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(gather4(x, index)), gather4(x, index + 4), 1);
}

}  // namespace sardine
