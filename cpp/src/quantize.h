// ggml's quantizer over all cores; used by the converter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sardine {

// Bytes of one row of n_cols values; throws InvalidArgument for an unknown type or a row of broken blocks.
size_t quantized_row_size(const std::string& type, int64_t n_cols);

// src [n_rows, n_cols] f32 -> dst [n_rows, quantized_row_size]. Types that need an importance matrix are
// refused.
void quantize_rows(const std::string& type, const float* src, uint8_t* dst, int64_t n_rows, int64_t n_cols,
                   int n_threads);

// src [n_rows, quantized_row_size] -> dst [n_rows, n_cols] f32, by ggml's own reading of the type.
void dequantize_rows(const std::string& type, const uint8_t* src, float* dst, int64_t n_rows, int64_t n_cols,
                     int n_threads);

}  // namespace sardine
