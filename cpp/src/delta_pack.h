// A packed sparse delta of one FFN matrix, viewed in place (docs/format.md, "Positions" and "Values").
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace sardine {

enum class ValueType { f32, f16, q8_0 };

constexpr int64_t kMaxExperts = 256;

// Values of some positions, in order: value p is scale * dequantize(data)[p]. Non-owning; data may be null.
struct DeltaValues {
    ValueType type = ValueType::f32;
    const uint8_t* data = nullptr;
    float scale = 1.0f;
};

// Non-owning. Position p of row r in column block b is column b * block_columns + col[p].
struct DeltaMatrix {
    int64_t n_rows = 0, n_cols = 0;
    int64_t n_blocks = 0, block_columns = 0;
    int64_t n_positions = 0;
    int32_t n_experts = 0;
    const int32_t* row_ptr = nullptr;  // [n_blocks * n_rows + 1]
    const uint16_t* col = nullptr;     // [n_positions]
    ValueType type = ValueType::f32;
    const uint8_t* val = nullptr;  // expert e's values start at val + e * val_stride
    size_t val_stride = 0;         // bytes
    const float* scale = nullptr;  // [n_experts]
    DeltaValues shared;            // a part that every mode adds, whatever the routes; optional

    DeltaValues expert(int64_t e) const { return {type, val + e * val_stride, scale[e]}; }
    bool empty() const { return n_positions == 0; }
    int64_t block_width(int64_t b) const {
        const int64_t left = n_cols - b * block_columns;
        return left < block_columns ? left : block_columns;
    }
    const int32_t* block_rows(int64_t b) const { return row_ptr + b * n_rows; }
};

// Checks every row pointer, column, scale and value, on n_threads threads.
// Calls fail(part, what) with part "row_ptr", "col", "scale", "val", "shared_scale" or "shared" on the first
// defect; fail must throw.
void validate_delta(const DeltaMatrix& m, int n_threads,
                    const std::function<void(const char* part, const std::string& what)>& fail);

}  // namespace sardine
