// ggml's quantizer over all cores; used by the converter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sardine {

// How the converter's input stores a number. bf16 is the upper half of an f32.
enum class StoredType { f64, f32, f16, bf16 };

// Throws InvalidArgument for another name than those of the enumerators.
StoredType find_stored_type(const std::string& name);
size_t stored_size(StoredType type);

// Bytes of one row of n_cols values; throws InvalidArgument for an unknown type or a row of broken blocks.
size_t quantized_row_size(const std::string& type, int64_t n_cols);

// True for the types that ggml cannot make without an importance matrix.
bool requires_importance(const std::string& type);

// The largest magnitude that a weight of this type may have.
float largest_value(const std::string& type);

struct Rows {
    const void* src = nullptr;  // [n_rows, n_cols] of `stored`
    StoredType stored = StoredType::f32;
    int64_t n_rows = 0, n_cols = 0;
    // Rows of a head, whose two halves are interleaved on the way (rotary halves to ggml's pairs); 0: none
    // are. n_rows is a multiple.
    int64_t head_rows = 0;
    const float* importance = nullptr;  // [n_cols], or null
};

// Row r of the result is this row of the source.
int64_t source_row(int64_t r, int64_t head_rows);

// rows -> dst [n_rows, quantized_row_size]. Returns false, dst being undefined, where a value is not finite
// or beyond largest_value(type). Throws InvalidArgument for sizes that do not fit, or for a type that
// requires an importance matrix and has none.
[[nodiscard]] bool quantize_rows(const std::string& type, const Rows& rows, uint8_t* dst, int n_threads);

// src [n_rows, quantized_row_size] -> dst [n_rows, n_cols] f32, by ggml's own reading of the type.
void dequantize_rows(const std::string& type, const uint8_t* src, float* dst, int64_t n_rows, int64_t n_cols,
                     int n_threads);

}  // namespace sardine
