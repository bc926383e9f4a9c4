#include "delta_upload.h"

#include <cstring>

#include "kernels/q8_block.h"
#include "launch.h"

namespace sardine::device {
namespace {

size_t value_bytes(ValueType type, int64_t n) {
    return type == ValueType::f32 ? 4 * n : type == ValueType::f16 ? 2 * n : n;
}

// Values of n positions; room behind them stays zero.
void pack_values(const DeltaValues& v, int64_t n, uint8_t* data, uint8_t* block_scale) {
    if (v.type != ValueType::q8_0) {
        std::memcpy(data, v.data, value_bytes(v.type, n));
        return;
    }
    const auto* blocks = reinterpret_cast<const Q8Block*>(v.data);
    for (int64_t b = 0; b < (n + kQ8Block - 1) / kQ8Block; ++b) {
        std::memcpy(data + b * kQ8Block, blocks[b].q, kQ8Block);
        std::memcpy(block_scale + b * sizeof blocks[b].d, &blocks[b].d, sizeof blocks[b].d);
    }
}

}  // namespace

DeltaLayout::DeltaLayout(const DeltaMatrix& m, int n_warps) {
    if (m.empty()) return;
    const int64_t n = padded(m.n_positions);
    auto place = [&](size_t& offset, size_t size) {
        offset = bytes;
        bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    };
    auto stride = [](size_t size) { return (size + 31) / 32 * 32; };
    place(row_ptr, sizeof(int32_t) * (m.n_blocks * m.n_rows + 1));
    place(col, sizeof(uint16_t) * n);
    value_stride = static_cast<int64_t>(value_bytes(m.type, n));
    place(values, value_stride * m.n_experts);
    if (m.type == ValueType::q8_0) {
        block_scale_stride = static_cast<int64_t>(stride(sizeof(uint16_t) * n / kQ8Block) / sizeof(uint16_t));
        place(block_scale, sizeof(uint16_t) * block_scale_stride * m.n_experts);
    }
    place(scale, sizeof(float) * m.n_experts);
    if (m.shared.data) {
        place(shared, value_bytes(m.shared.type, n));
        if (m.shared.type == ValueType::q8_0) place(shared_block_scale, sizeof(uint16_t) * n / kQ8Block);
    }
    place(warp_rows, sizeof(int32_t) * (n_warps + 1));
}

std::vector<uint8_t> pack_delta(const DeltaMatrix& m, const DeltaLayout& at,
                                const std::vector<int32_t>& warp_rows) {
    std::vector<uint8_t> out(at.bytes);
    if (m.empty()) return out;
    auto put = [&](size_t offset, const void* data, size_t size) { std::memcpy(&out[offset], data, size); };
    put(at.row_ptr, m.row_ptr, sizeof(int32_t) * (m.n_blocks * m.n_rows + 1));
    put(at.col, m.col, sizeof(uint16_t) * m.n_positions);
    for (int32_t e = 0; e < m.n_experts; ++e)
        pack_values(m.expert(e), m.n_positions, &out[at.values + e * at.value_stride],
                    &out[at.block_scale] + e * at.block_scale_stride * sizeof(uint16_t));
    put(at.scale, m.scale, sizeof(float) * m.n_experts);
    if (m.shared.data) pack_values(m.shared, m.n_positions, &out[at.shared], &out[at.shared_block_scale]);
    put(at.warp_rows, warp_rows.data(), sizeof(int32_t) * warp_rows.size());
    return out;
}

Delta view_delta(const DeltaMatrix& m, const DeltaLayout& at, const uint8_t* base) {
    auto words = [&](size_t offset) { return reinterpret_cast<const uint16_t*>(base + offset); };
    Delta d;
    d.n_rows = static_cast<int32_t>(m.n_rows);
    d.n_cols = static_cast<int32_t>(m.n_cols);
    d.n_blocks = static_cast<int32_t>(m.n_blocks);
    d.block_columns = static_cast<int32_t>(m.block_columns);
    d.row_ptr = reinterpret_cast<const int32_t*>(base + at.row_ptr);
    d.col = words(at.col);
    d.values = {base + at.values, m.type == ValueType::q8_0 ? words(at.block_scale) : nullptr, m.type};
    d.value_stride = at.value_stride;
    d.block_scale_stride = at.block_scale_stride;
    d.scale = reinterpret_cast<const float*>(base + at.scale);
    if (m.shared.data) {
        d.shared = {base + at.shared,
                    m.shared.type == ValueType::q8_0 ? words(at.shared_block_scale) : nullptr, m.shared.type};
        d.shared_scale = m.shared.scale;
    }
    d.warp_rows = reinterpret_cast<const int32_t*>(base + at.warp_rows);
    d.row_lanes = row_lanes(static_cast<double>(m.n_positions) / static_cast<double>(m.n_rows * m.n_blocks));
    return d;
}

}  // namespace sardine::device
