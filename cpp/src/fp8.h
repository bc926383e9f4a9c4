// Weights in 8-bit floats with scales to float32, over all cores; used by the converter.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace sardine {

// e4m3: 4 bits of exponent, no infinities (OCP's E4M3, torch's float8_e4m3fn). e5m2: the upper half of an
// f16.
enum class Fp8Type { e4m3, e5m2 };

// Throws InvalidArgument for another name than f8_e4m3 and f8_e5m2.
Fp8Type find_fp8_type(const std::string& name);

// The value of every byte.
const std::array<float, 256>& fp8_values(Fp8Type type);

struct Fp8Rows {
    const uint8_t* src = nullptr;  // [n_rows, n_cols]
    Fp8Type type = Fp8Type::e4m3;
    int64_t n_rows = 0, n_cols = 0;
    int64_t first_row = 0;  // the number in the matrix of the first row
    // Row r and column c of the matrix have scale[r / block_rows][c / block_cols].
    const float* scale = nullptr;  // [scale_rows, scale_cols]
    int64_t scale_rows = 0, scale_cols = 0, block_rows = 0, block_cols = 0;
};

// rows -> dst [n_rows, n_cols], each value times its scale, rounded once. Throws InvalidArgument where the
// scales do not cover the rows exactly in columns, and at least in rows.
void decode_fp8(const Fp8Rows& rows, float* dst, int n_threads);

}  // namespace sardine
