// How many threads a launch takes. Plain arithmetic, so that it is tested without a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sardine::device {

struct Limits {
    int n_multiprocessors = 1;
    int threads = 1024;              // of a multiprocessor, at once
    size_t shared_block = 48 << 10;  // bytes that a block may ask for
    size_t shared_all = 64 << 10;    // bytes of a multiprocessor
};

// The row kernel's grid for activations of `width` columns (of a block of columns).
struct RowsShape {
    int n_blocks = 1, n_warps = 8;  // blocks, and warps of each
    bool staged = true;
    size_t shared = 0;  // bytes of a block
    int total_warps() const { return n_blocks * n_warps; }
};
RowsShape rows_shape(const Limits& limits, int64_t width, int64_t n_positions);

// Rows for `n` warps, of one matrix or of two that a launch does together: [n_warps + 1] for each, so that
// warps have about the same number of positions. row_ptr[m] is null for a matrix without positions.
std::vector<std::vector<int32_t>> split_rows(const std::vector<const int32_t*>& row_ptr, int64_t n_rows,
                                             int64_t n_blocks, int n_warps);

// Lanes that add up a row of so many positions.
int row_lanes(double positions_of_a_row);

}  // namespace sardine::device
