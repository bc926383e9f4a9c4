// A delta as the kernels want it: one run of bytes for each matrix, and a view of it where it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delta_pack.h"
#include "views.h"

namespace sardine::device {

// Offsets of a matrix's arrays, multiples of kAlignment; `bytes` is 0 for a matrix without positions.
struct DeltaLayout {
    DeltaLayout(const DeltaMatrix& m, int n_warps);

    size_t row_ptr = 0, col = 0, values = 0, block_scale = 0, scale = 0, shared = 0, shared_block_scale = 0,
           warp_rows = 0;
    size_t bytes = 0;
    int64_t value_stride = 0, block_scale_stride = 0;
};
constexpr size_t kAlignment = 256;

// All arrays; warp_rows as split_rows() gives them for this matrix.
std::vector<uint8_t> pack_delta(const DeltaMatrix& m, const DeltaLayout& at,
                                const std::vector<int32_t>& warp_rows);

// `base` is the device's address of the packed bytes, a multiple of kAlignment.
Delta view_delta(const DeltaMatrix& m, const DeltaLayout& at, const uint8_t* base);

}  // namespace sardine::device
