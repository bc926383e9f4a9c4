#include "fp8.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "parallel.h"
#include "sardine/error.h"

namespace sardine {
namespace {

constexpr int64_t kGrain = 1 << 16;  // values at a time

std::array<float, 256> make_values(Fp8Type type) {
    const int fraction_bits = type == Fp8Type::e4m3 ? 3 : 2, bias = type == Fp8Type::e4m3 ? 7 : 15;
    const int last_exponent = (0x7f >> fraction_bits);
    std::array<float, 256> values{};
    for (uint32_t code = 0; code < 256; ++code) {
        const int exponent = (code & 0x7f) >> fraction_bits;
        const uint32_t fraction = code & ((1u << fraction_bits) - 1);
        const bool special = exponent == last_exponent && (type == Fp8Type::e5m2 || fraction == 7);
        uint32_t bits = 0;
        if (special && type == Fp8Type::e4m3) {
            bits = 0x7fc00000;
        } else if (special) {
            bits = 0x7f800000 | fraction << (23 - fraction_bits);
        } else {
            const int step = std::max(exponent, 1) - bias - fraction_bits;
            const auto whole = static_cast<float>(fraction + (exponent > 0 ? 1u << fraction_bits : 0));
            bits = std::bit_cast<uint32_t>(std::ldexp(whole, step));
        }
        values[code] = std::bit_cast<float>(bits | (code & 0x80) << 24);
    }
    return values;
}

}  // namespace

Fp8Type find_fp8_type(const std::string& name) {
    if (name == "f8_e4m3") return Fp8Type::e4m3;
    if (name == "f8_e5m2") return Fp8Type::e5m2;
    throw InvalidArgument("'" + name + "' is not an 8-bit float: expected f8_e4m3 or f8_e5m2");
}

const std::array<float, 256>& fp8_values(Fp8Type type) {
    static const std::array<float, 256> e4m3 = make_values(Fp8Type::e4m3), e5m2 = make_values(Fp8Type::e5m2);
    return type == Fp8Type::e4m3 ? e4m3 : e5m2;
}

void decode_fp8(const Fp8Rows& rows, float* dst, int n_threads) {
    if (rows.n_rows == 0 || rows.n_cols == 0) return;
    if (rows.block_rows < 1 || rows.block_cols < 1 || rows.first_row < 0 ||
        (rows.n_cols - 1) / rows.block_cols + 1 != rows.scale_cols ||
        (rows.first_row + rows.n_rows - 1) / rows.block_rows >= rows.scale_rows)
        throw InvalidArgument("scales [" + std::to_string(rows.scale_rows) + ", " +
                              std::to_string(rows.scale_cols) + "] for blocks of " +
                              std::to_string(rows.block_rows) + " x " + std::to_string(rows.block_cols) +
                              " do not fit rows of " + std::to_string(rows.n_cols) + " values");
    const float* values = fp8_values(rows.type).data();
    parallel_for(
        rows.n_rows, n_threads, std::max<int64_t>(1, kGrain / rows.n_cols), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                const uint8_t* src = rows.src + r * rows.n_cols;
                float* out = dst + r * rows.n_cols;
                const float* scale = rows.scale + (rows.first_row + r) / rows.block_rows * rows.scale_cols;
                for (int64_t c = 0; c < rows.n_cols; ++scale) {
                    const int64_t stop = c + std::min(rows.block_cols, rows.n_cols - c);
                    for (; c < stop; ++c) out[c] = values[src[c]] * *scale;
                }
            }
        });
}

}  // namespace sardine
