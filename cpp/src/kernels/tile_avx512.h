// Turning blocks of 16 x 16 elements of 32 bits, for the files built with AVX-512.
#pragma once

#include <immintrin.h>

namespace sardine {

// Row i of v becomes column i.
static inline void transpose16(__m512i v[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 2; ++j) {
            v[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + j + 2]);
            v[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + j + 2]);
        }
    // v[4 * i + c] now holds, in its lane l of 128 bits, column 4 * l + c of rows 4 * i to 4 * i + 3.
    for (int c = 0; c < 4; ++c) {
        t[c] = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88);           // lanes 0, 2 of rows 0 to 7
        t[4 + c] = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xDD);       // lanes 1, 3
        t[8 + c] = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);  // the same of rows 8 to 15
        t[12 + c] = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xDD);
    }
    for (int c = 0; c < 4; ++c) {
        v[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
        v[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xDD);
        v[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
        v[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xDD);
    }
}

}  // namespace sardine
