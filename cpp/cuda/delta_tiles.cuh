// Deltas of a batch: tokens grouped by their j-th expert into tiles, x as f16, a tile's columns staged in
// shared memory 256 at a time, sums in registers. The experts of one j touch each token once, and the j
// follow each other, so sums have a fixed order without atomics.
#pragma once

#include "grid.h"
#include "values.cuh"
#include "views.h"

namespace sardine::device {

constexpr int kHalveThreads = 256;
constexpr int kGroupThreads = 256;
constexpr size_t kGroupBytes = sizeof(int32_t) * 3 * 256;
constexpr int kTileThreads = 512;
constexpr int kTileColumns = 256;  // staged at a time
constexpr int kWarpRows = 16;
constexpr int kTileRows = kTileThreads / grid::kWarp * kWarpRows;
constexpr int kEntries = 128;  // positions of a warp's rows, waiting in shared memory

// A position: its value and its column in the stage.
struct alignas(8) Entry {
    float value;
    int32_t column;
};
constexpr size_t kStageBytes = sizeof(uint16_t) * kTileColumns * kTileTokens;
constexpr size_t kTileBytes = kStageBytes + kTileThreads / grid::kWarp * kEntries * sizeof(Entry);
static_assert(kTileBytes <= 48 * 1024, "every device has as much without asking");

// One block a token.
SARDINE_KERNEL void SARDINE_BOUNDS(kHalveThreads) halve(HalveArgs a) {
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    const int token = grid::block_x();
    const float* x = a.x + token * a.x_stride;
    auto* tops = reinterpret_cast<float*>(grid::shared_memory());  // [n_warps]
    float top = 0.0f;
    for (int i = grid::thread(); i < a.n_cols; i += grid::n_threads()) top = fmaxf(top, fabsf(x[i]));
    for (int step = grid::kWarp / 2; step > 0; step /= 2) top = fmaxf(top, grid::shuffle_xor(top, step));
    if (lane == 0) tops[warp] = top;
    grid::sync_block();
    for (int w = 0; w < grid::n_threads() / grid::kWarp; ++w) top = fmaxf(top, tops[w]);
    // The largest becomes 2^10 to 2^11, so f16's normal numbers reach 2^-25 of it.
    const int exponent = top > 0.0f && top < INFINITY ? most(ilogbf(top) - 10, -100) : 0;
    const float factor = scalbnf(1.0f, -exponent);
    uint16_t* out = a.half + token * half_stride(a.n_cols);
    for (int i = grid::thread(); i < static_cast<int>(half_stride(a.n_cols)); i += grid::n_threads())
        out[i] = grid::float_to_half(i < a.n_cols ? x[i] * factor : 0.0f);
    if (grid::thread() == 0) a.scale[token] = scalbnf(1.0f, exponent);
}

// One block for each j.
SARDINE_KERNEL void SARDINE_BOUNDS(kGroupThreads) group(GroupArgs a) {
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    const int n_warps = grid::n_threads() / grid::kWarp, j = grid::block_x();
    auto* count = reinterpret_cast<int32_t*>(grid::shared_memory());  // [n_experts]
    int32_t* first = count + 256;
    int32_t* first_tile = first + 256;
    int32_t* tokens = a.tokens + static_cast<int64_t>(j) * a.n_tokens;
    Tile* tiles = a.tiles + static_cast<int64_t>(j) * max_tiles(a.n_tokens, a.n_experts);
    for (int e = warp; e < a.n_experts; e += n_warps) {
        int n = 0;
        for (int t0 = 0; t0 < a.n_tokens; t0 += grid::kWarp) {
            const int t = t0 + lane;
            const bool hit = t < a.n_tokens && static_cast<int>(a.routes[t * 2 * a.k + a.k + j]) == e;
            n += grid::count_bits(grid::ballot(hit));
        }
        if (lane == 0) count[e] = n;
    }
    grid::sync_block();
    if (grid::thread() == 0) {
        int n = 0, n_tiles = 0;
        for (int e = 0; e < a.n_experts; ++e) {
            first[e] = n;
            first_tile[e] = n_tiles;
            n += count[e];
            n_tiles += (count[e] + kTileTokens - 1) / kTileTokens;
        }
        for (int i = n_tiles; i < max_tiles(a.n_tokens, a.n_experts); ++i) tiles[i] = {0, 0, 0};
    }
    grid::sync_block();
    for (int e = warp; e < a.n_experts; e += n_warps) {
        for (int i = lane; i * kTileTokens < count[e]; i += grid::kWarp)
            tiles[first_tile[e] + i] = {e, first[e] + i * kTileTokens,
                                        least(kTileTokens, count[e] - i * kTileTokens)};
        int at = first[e];
        for (int t0 = 0; t0 < a.n_tokens; t0 += grid::kWarp) {
            const int t = t0 + lane;
            const bool hit = t < a.n_tokens && static_cast<int>(a.routes[t * 2 * a.k + a.k + j]) == e;
            const uint32_t hits = grid::ballot(hit);
            if (hit) tokens[at + grid::count_bits(hits & ((1u << lane) - 1))] = t;
            at += grid::count_bits(hits);
        }
    }
}

// Columns [first, first + 256) of the lane's two tokens (-1: none), one word of two f16 a column; zeros from
// `width` on.
SARDINE_DEVICE void stage_columns(const TilesArgs& a, int t0, int t1, int first, int width, uint32_t* stage) {
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    constexpr int kWarpColumns = kTileColumns / (kTileThreads / grid::kWarp);
    const int64_t stride = half_stride(a.delta.n_cols);
    const uint16_t* x0 = a.half + most(t0, 0) * stride + first;
    const uint16_t* x1 = a.half + most(t1, 0) * stride + first;
    for (int c0 = warp * kWarpColumns; c0 < (warp + 1) * kWarpColumns; c0 += 8) {
        uint32_t words[8];
        if (first % 8 == 0 && c0 + 8 <= width) {
            const grid::Words4 a0 = *reinterpret_cast<const grid::Words4*>(x0 + c0);
            const grid::Words4 a1 = *reinterpret_cast<const grid::Words4*>(x1 + c0);
            const uint32_t w0[4] = {a0.x, a0.y, a0.z, a0.w}, w1[4] = {a1.x, a1.y, a1.z, a1.w};
            SARDINE_UNROLL
            for (int i = 0; i < 4; ++i) {
                words[2 * i] = (w0[i] & 0xFFFF) | w1[i] << 16;
                words[2 * i + 1] = w0[i] >> 16 | (w1[i] & 0xFFFF0000u);
            }
        } else {
            SARDINE_UNROLL
            for (int i = 0; i < 8; ++i)
                words[i] = c0 + i < width ? x0[c0 + i] | static_cast<uint32_t>(x1[c0 + i]) << 16 : 0;
        }
        const uint32_t keep = (t0 >= 0 ? 0xFFFFu : 0) | (t1 >= 0 ? 0xFFFF0000u : 0);
        SARDINE_UNROLL
        for (int i = 0; i < 8; ++i) stage[(c0 + i) * grid::kWarp + lane] = words[i] & keep;
    }
}

// The first of [begin, end) whose column is not below `limit`; columns rise.
SARDINE_DEVICE int first_at_least(const uint16_t* col, int begin, int end, int limit) {
    while (begin < end) {
        const int middle = begin + (end - begin) / 2;
        if (col[middle] < limit)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

// Adds the positions of the warp's rows whose columns are staged: lane i < kWarpRows has those of row i,
// [begin, end).
SARDINE_DEVICE void add_staged(const TilesArgs& a, const Values& values, float scale, int begin, int end,
                               int first_col, const uint32_t* stage, Entry* entries, float (*sums)[2]) {
    const int lane = grid::thread() % grid::kWarp;
    int before = end - begin;  // inclusive sums over the lanes, then the positions of the rows before
    for (int step = 1; step < kWarpRows; step *= 2) {
        const int other = grid::shuffle(before, most(lane - step, 0));
        if (lane >= step) before += other;
    }
    const int total = grid::shuffle(before, kWarpRows - 1);
    before -= end - begin;
    const int offset = begin - before;
    for (int done = 0; done < total; done += kEntries) {
        grid::sync_warp();
        SARDINE_UNROLL
        for (int step = 0; step < kEntries; step += grid::kWarp) {
            const int q = done + step + lane;
            int row = 0;  // the last one with before <= q
            for (int bit = kWarpRows / 2; bit > 0; bit /= 2)
                if (grid::shuffle(before, row + bit) <= q) row += bit;
            const int p = q + grid::shuffle(offset, row);
            if (q < total) {
                float v = values.data ? scale * value_at(values, p) : 0.0f;
                if (a.delta.shared.data) v += a.delta.shared_scale * value_at(a.delta.shared, p);
                entries[step + lane] = {v, a.delta.col[p] - first_col};
            }
        }
        grid::sync_warp();
        SARDINE_UNROLL
        for (int i = 0; i < kWarpRows; ++i) {
            const int from = most(grid::shuffle(before, i), done) - done;
            const int next = i + 1 < kWarpRows ? grid::shuffle(before, i + 1) : total;
            const int to = least(next - done, kEntries);
            float s0 = sums[i][0], s1 = sums[i][1];
            for (int q = from; q < to; ++q) {
                const Entry e = entries[q];
                const uint32_t x = stage[e.column * grid::kWarp + lane];
                s0 += e.value * grid::half_to_float(low_half(x));
                s1 += e.value * grid::half_to_float(high_half(x));
            }
            sums[i][0] = s0;
            sums[i][1] = s1;
        }
    }
}

// Block (x, y): tile x of the rows [y * kTileRows, ...). Neighbours in x share rows, whose y stays in the
// cache.
SARDINE_KERNEL void SARDINE_BOUNDS(kTileThreads) delta_tiles(TilesArgs a) {
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    const Delta& d = a.delta;
    const int first_token = grid::block_x() * kTileTokens;
    Tile tile = {-1, first_token, least(kTileTokens, a.n_tokens - first_token)};
    if (a.k > 0) tile = a.tiles[grid::block_x()];
    if (tile.n <= 0) return;
    const auto token_at = [&](int i) {
        return i >= tile.n ? -1 : a.k > 0 ? a.tokens[tile.first + i] : tile.first + i;
    };
    const int t0 = token_at(2 * lane), t1 = token_at(2 * lane + 1);
    const Values values = tile.expert >= 0 ? of_expert(d, tile.expert) : Values{};
    const float scale = tile.expert >= 0 ? d.scale[tile.expert] : 0.0f;

    auto* stage = reinterpret_cast<uint32_t*>(grid::shared_memory());
    auto* entries = reinterpret_cast<Entry*>(grid::shared_memory() + kStageBytes) + warp * kEntries;
    const int first_row = grid::block_y() * kTileRows + warp * kWarpRows;
    const bool has_row = lane < kWarpRows && first_row + lane < d.n_rows;
    float sums[kWarpRows][2] = {};
    for (int b = 0; b < d.n_blocks; ++b) {
        const int block_col = b * d.block_columns, width = least(d.block_columns, d.n_cols - block_col);
        const int32_t* ptr = d.row_ptr + static_cast<int64_t>(b) * d.n_rows;
        int begin = has_row ? ptr[first_row + lane] : 0;
        const int row_end = has_row ? ptr[first_row + lane + 1] : 0;
        for (int col = 0; col < width; col += kTileColumns) {
            grid::sync_block();
            stage_columns(a, t0, t1, block_col + col, least(kTileColumns, width - col), stage);
            grid::sync_block();
            // Columns of a row differ, so a stage holds at most as many positions of it as it has columns.
            const int end =
                first_at_least(d.col, begin, least(row_end, begin + kTileColumns), col + kTileColumns);
            add_staged(a, values, scale, begin, end, col, stage, entries, sums);
            begin = end;
        }
    }
    const int tokens[2] = {t0, t1};
    for (int i = 0; i < 2; ++i) {
        if (tokens[i] < 0) continue;
        const int64_t t = tokens[i];
        const float w = a.half_scale[t] * (a.k > 0 ? a.routes[t * 2 * a.k + a.j] : 1.0f);
        float* y = a.y + t * d.n_rows + first_row;
        SARDINE_UNROLL
        for (int r = 0; r < kWarpRows; ++r)
            if (first_row + r < d.n_rows) y[r] += w * sums[r][i];
    }
}

}  // namespace sardine::device
