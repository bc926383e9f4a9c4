// Deltas of a batch: tokens grouped by their j-th expert into tiles, a tile's activations staged in shared
// memory a few columns at a time, sums in registers, all in f32. The experts of one j touch each token once,
// and the j follow each other, so sums have a fixed order without atomics.
#pragma once

#include "grid.h"
#include "values.cuh"
#include "views.h"

namespace sardine::device {

constexpr int kGroupThreads = 256;
constexpr size_t kGroupBytes = sizeof(int32_t) * 3 * 256;
constexpr int kTileThreads = 1024;  // at most
constexpr int kWarpRows = 16;
constexpr int kEntries = 64;  // positions of a warp's rows, waiting in shared memory

// A position: its value and its column in the stage.
struct alignas(8) Entry {
    float value;
    int32_t column;
};
// A column of a lane's two tokens.
struct alignas(8) Pair {
    float x, y;
};
constexpr size_t tile_bytes(int stage_columns, int threads) {
    return sizeof(Pair) * stage_columns * kTileTokens / 2 + threads / grid::kWarp * kEntries * sizeof(Entry);
}
// Threads of a block: a power of two of warps, no more than a matrix of so many rows keeps busy.
constexpr int tile_threads(int n_rows) {
    int threads = grid::kWarp;
    while (threads < kTileThreads && threads / grid::kWarp * kWarpRows < n_rows) threads *= 2;
    return threads;
}
// Columns staged at a time: every device has the memory for the fewer ones without asking.
constexpr int kFewColumns = 128, kManyColumns = 256;
static_assert(tile_bytes(kFewColumns, kTileThreads) <= 48 * 1024);
static_assert(kFewColumns % (4 * kTileThreads / grid::kWarp) == 0, "four columns a warp and step");

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

// Up to four of n columns; zeros behind them. `aligned`: x may be read 16 bytes at a time.
SARDINE_DEVICE void load_columns(const float* x, int n, bool aligned, float* out) {
    if (aligned && n >= 4) {
        const grid::Words4 v = *reinterpret_cast<const grid::Words4*>(x);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
        SARDINE_UNROLL
        for (int i = 0; i < 4; ++i) out[i] = grid::bits_to_float(words[i]);
    } else {
        SARDINE_UNROLL
        for (int i = 0; i < 4; ++i) out[i] = i < n ? x[i] : 0.0f;
    }
}

// Columns [first, first + a.stage_columns) of the lane's two tokens (-1: none); zeros from `width` on.
SARDINE_DEVICE void stage_columns(const TilesArgs& a, int t0, int t1, int first, int width, Pair* stage) {
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    const bool aligned = a.x_stride % 4 == 0 && first % 4 == 0;
    const float* x0 = a.x + most(t0, 0) * a.x_stride + first;
    const float* x1 = a.x + most(t1, 0) * a.x_stride + first;
    const int share = a.stage_columns / (grid::n_threads() / grid::kWarp);
    for (int c = warp * share; c < (warp + 1) * share; c += 4) {
        float v0[4], v1[4];
        load_columns(x0 + c, t0 >= 0 ? width - c : 0, aligned, v0);
        load_columns(x1 + c, t1 >= 0 ? width - c : 0, aligned, v1);
        SARDINE_UNROLL
        for (int i = 0; i < 4; ++i) stage[(c + i) * grid::kWarp + lane] = {v0[i], v1[i]};
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
                               int first_col, const Pair* stage, Entry* entries, float (*sums)[2]) {
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
        int q = 0;
        SARDINE_UNROLL
        for (int i = 0; i < kWarpRows; ++i) {
            const int next = i + 1 < kWarpRows ? grid::shuffle(before, i + 1) : total;
            const int to = least(next - done, kEntries);
            float s0 = sums[i][0], s1 = sums[i][1];
            for (; q < to; ++q) {
                const Entry e = entries[q];
                const Pair x = stage[e.column * grid::kWarp + lane];
                s0 += e.value * x.x;
                s1 += e.value * x.y;
            }
            sums[i][0] = s0;
            sums[i][1] = s1;
        }
    }
}

// Block (x, y): tile x and the y-th rows, kWarpRows a warp. Neighbours in x share rows, whose y stays in the
// cache.
SARDINE_KERNEL void SARDINE_BOUNDS(kTileThreads) delta_tiles(TilesArgs a) {
    const int lane = grid::thread() % grid::kWarp, warp = grid::thread() / grid::kWarp;
    const int n_warps = grid::n_threads() / grid::kWarp;
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

    auto* entries = reinterpret_cast<Entry*>(grid::shared_memory()) + warp * kEntries;
    auto* stage =
        reinterpret_cast<Pair*>(reinterpret_cast<Entry*>(grid::shared_memory()) + n_warps * kEntries);
    const int first_row = (grid::block_y() * n_warps + warp) * kWarpRows;
    const bool has_row = lane < kWarpRows && first_row + lane < d.n_rows;
    float sums[kWarpRows][2] = {};
    for (int b = 0; b < d.n_blocks; ++b) {
        const int block_col = b * d.block_columns, width = least(d.block_columns, d.n_cols - block_col);
        const int32_t* ptr = d.row_ptr + static_cast<int64_t>(b) * d.n_rows;
        int begin = has_row ? ptr[first_row + lane] : 0;
        const int row_end = has_row ? ptr[first_row + lane + 1] : 0;
        for (int col = 0; col < width; col += a.stage_columns) {
            grid::sync_block();
            stage_columns(a, t0, t1, block_col + col, width - col, stage);
            grid::sync_block();
            // Columns of a row differ, so a stage holds at most as many positions of it as it has columns.
            const int end =
                first_at_least(d.col, begin, least(row_end, begin + a.stage_columns), col + a.stage_columns);
            add_staged(a, values, scale, begin, end, col, stage, entries, sums);
            begin = end;
        }
    }
    const int tokens[2] = {t0, t1};
    for (int i = 0; i < 2; ++i) {
        if (tokens[i] < 0) continue;
        const int64_t t = tokens[i];
        const float w = a.k > 0 ? a.routes[t * 2 * a.k + a.j] : 1.0f;
        float* y = a.y + t * d.n_rows + first_row;
        SARDINE_UNROLL
        for (int r = 0; r < kWarpRows; ++r)
            if (first_row + r < d.n_rows) y[r] += w * sums[r][i];
    }
}

}  // namespace sardine::device
