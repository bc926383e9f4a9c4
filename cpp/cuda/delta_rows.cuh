// Deltas of single tokens. The grid is as large as the device holds at once; a warp streams through the
// positions of its share of the rows, 16 bytes of columns a lane, and adds rows up from shared memory. All
// sums have a fixed order.
#pragma once

#include "grid.h"
#include "values.cuh"
#include "views.h"

namespace sardine::device {

constexpr int kRowEnds = 36;  // of the next 33 rows, padded to 16 bytes
constexpr size_t kRowsWarpBytes = sizeof(float) * kChunk + sizeof(int32_t) * kRowEnds;
constexpr int kRowsMaxThreads = 1024;

// How many experts and which types a kernel is made for; the rest is decided at run time.
enum class SharedPart { none, any };

// Values of the positions [p, p + 8) times x; 0 outside [begin, end).
template <ValueType T, int K, SharedPart S>
SARDINE_DEVICE void lane_products(const Delta& d, int k, const float* routes, int64_t p, int64_t begin,
                                  int64_t end, const float* x, float* out) {
    float v[kLaneValues] = {};
    const grid::Words4 col = grid::load_once(reinterpret_cast<const grid::Words4*>(d.col + p));
    if (K == 2) {
        const int e0 = static_cast<int>(routes[2]), e1 = static_cast<int>(routes[3]);
        Raw<T> a, b;
        a.fetch(of_expert(d, e0), p);
        b.fetch(of_expert(d, e1), p);
        if (S == SharedPart::any) add_values(d.shared, p, d.shared_scale, v);
        a.add(routes[0] * d.scale[e0], v);
        b.add(routes[1] * d.scale[e1], v);
    } else {
        if (S == SharedPart::any) add_values(d.shared, p, d.shared_scale, v);
        for (int j = 0; j < k; ++j) {
            const int e = static_cast<int>(routes[k + j]);
            Raw<T> a;
            a.fetch(of_expert(d, e), p);
            a.add(routes[j] * d.scale[e], v);
        }
    }
    const uint32_t words[4] = {col.x, col.y, col.z, col.w};
    SARDINE_UNROLL
    for (int i = 0; i < kLaneValues; ++i) {
        const int c = i % 2 ? high_half(words[i / 2]) : low_half(words[i / 2]);
        out[i] = p + i >= begin && p + i < end ? v[i] * x[c] : 0.0f;
    }
}

// Adds up the rows [first, last) of a column block and writes, or from the second block on adds, each to y;
// base, if not null, comes on top.
template <ValueType T, int K, SharedPart S>
SARDINE_DEVICE void stream_rows(const Delta& d, int block, int first, int last, int k, const float* routes,
                                const float* x, const float* base, float* y, float* products,
                                int32_t* row_ends) {
    const int lane = grid::thread() % grid::kWarp;
    const int32_t* ptr = d.row_ptr + static_cast<int64_t>(block) * d.n_rows;
    const int64_t begin = ptr[first], end = ptr[last];
    const int lanes = d.row_lanes, together = grid::kWarp / lanes;
    const int mine = lane / lanes, part = lane % lanes;
    int row = first;
    float carry = 0.0f;  // of a row that began in an earlier chunk
    for (int64_t chunk = begin / kChunk * kChunk; row < last; chunk += kChunk) {
        const int64_t chunk_end = chunk + kChunk;
        const int64_t p = chunk + lane * kLaneValues;
        int from = row;  // row_ends holds the pointers of the rows from this one on
        row_ends[lane] = ptr[least(from + lane, last)];
        if (lane == 0) row_ends[grid::kWarp] = ptr[least(from + grid::kWarp, last)];
        float out[kLaneValues] = {};
        if (p < end && p + kLaneValues > begin) lane_products<T, K, S>(d, k, routes, p, begin, end, x, out);
        SARDINE_UNROLL
        for (int i = 0; i < kLaneValues; ++i) products[lane * kLaneValues + i] = out[i];
        grid::sync_warp();
        while (true) {
            if (row - from + together > grid::kWarp) {
                from = row;
                grid::sync_warp();
                row_ends[lane] = ptr[least(from + lane, last)];
                if (lane == 0) row_ends[grid::kWarp] = ptr[least(from + grid::kWarp, last)];
                grid::sync_warp();
            }
            const int r = row + mine;
            const int64_t row_begin = row_ends[r - from], row_end = row_ends[r - from + 1];
            const bool complete = r < last && row_end <= chunk_end;
            const int to = static_cast<int>((row_end < chunk_end ? row_end : chunk_end) - chunk);
            float sum = 0.0f;
            if (r < last)
                for (int i = static_cast<int>((row_begin > chunk ? row_begin : chunk) - chunk) + part; i < to;
                     i += lanes)
                    sum += products[i];
            for (int step = lanes / 2; step > 0; step /= 2) sum += grid::shuffle_xor(sum, step);
            if (mine == 0) sum += carry;
            if (complete && part == 0) {
                const float all = block > 0 ? y[r] + sum : sum;
                y[r] = base ? base[r] + all : all;
            }
            // Rows end in order, so those that are complete come first.
            const int n = grid::count_bits(grid::ballot(complete)) / lanes;
            const float open = grid::shuffle(sum, least(n * lanes, grid::kWarp - 1));
            row += n;
            carry = n < together && row < last ? open : 0.0f;
            if (n < together || row >= last) break;
        }
        grid::sync_warp();
    }
}

template <ValueType T, int K, SharedPart S>
SARDINE_KERNEL void SARDINE_BOUNDS(kRowsMaxThreads) delta_rows(RowsArgs a) {
    const int warp = grid::thread() / grid::kWarp, n_warps = grid::n_threads() / grid::kWarp;
    const int token = grid::block_y();
    const int share = grid::block_x() * n_warps + warp;
    auto* staged = reinterpret_cast<float*>(grid::shared_memory() + n_warps * kRowsWarpBytes);
    auto* products = reinterpret_cast<float*>(grid::shared_memory() + warp * kRowsWarpBytes);
    auto* row_ends = reinterpret_cast<int32_t*>(products + kChunk);
    const float* routes = a.routes + static_cast<int64_t>(token) * 2 * a.k;
    const Delta& shape = a.delta[0];
    for (int b = 0; b < shape.n_blocks; ++b) {
        const int first_col = b * shape.block_columns;
        const float* x = a.x + token * a.x_stride + first_col;
        if (a.staged) {
            const int width = least(shape.block_columns, shape.n_cols - first_col);
            grid::sync_block();  // the block before is done with
            for (int i = grid::thread(); i < width; i += grid::n_threads()) staged[i] = x[i];
            grid::sync_block();
            x = staged;
        }
        for (int m = 0; m < a.n_matrices; ++m) {
            const Delta& d = a.delta[m];
            const int64_t out = static_cast<int64_t>(token) * d.n_rows;
            stream_rows<T, K, S>(d, b, d.warp_rows[share], d.warp_rows[share + 1], a.k, routes, x,
                                 a.base && b + 1 == d.n_blocks ? a.base + out : nullptr, a.y[m] + out,
                                 products, row_ends);
        }
    }
}

}  // namespace sardine::device
