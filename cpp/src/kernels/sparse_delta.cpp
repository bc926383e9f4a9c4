#include "kernels/sparse_delta.h"

#include <algorithm>

#include "kernels/q8_block.h"

namespace sardine {
namespace {

constexpr int64_t kGroupPositions = 2048;  // values of a row group stay in the first-level cache
constexpr int64_t kGroupRows = 64;

struct Range {
    int64_t begin, end;
};

// The first row whose rows before it hold at least `target` positions.
int64_t row_at(const DeltaMatrix& m, int64_t target) {
    int64_t low = 0, high = m.n_rows;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        int64_t before = 0;
        for (int64_t b = 0; b < m.n_blocks; ++b) before += m.block_rows(b)[mid] - m.block_rows(b)[0];
        if (before < target)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

Range thread_rows(const DeltaMatrix& m, int ith, int nth) {
    return {ith == 0 ? 0 : row_at(m, m.n_positions * ith / nth),
            ith == nth - 1 ? m.n_rows : row_at(m, m.n_positions * (ith + 1) / nth)};
}

// Cuts rows into groups whose values fit the scratch and calls body(first_row, n_rows, begin, n_positions),
// where begin is rounded down to a whole Q8_0 block.
template <typename F>
void for_row_groups(const int32_t* row_ptr, Range rows, const F& body) {
    int64_t r = rows.begin;
    while (r < rows.end) {
        int64_t end = r + 1;
        while (end < rows.end && end - r < kGroupRows && row_ptr[end + 1] - row_ptr[r] <= kGroupPositions)
            ++end;
        const int64_t begin = row_ptr[r] / kQ8Block * kQ8Block;
        if (row_ptr[end] > row_ptr[r]) body(r, end - r, begin, row_ptr[end] - begin);
        r = end;
    }
}

void add_values(const CpuOps& ops, const DeltaValues& v, int64_t begin, int64_t n, float weight,
                bool accumulate, float* out) {
    ops.add_values(v.type, v.data, begin, n, weight * v.scale, accumulate, out);
}

void add_one_token(const SparseDeltaArgs& a, const CpuOps& ops, Range rows, int64_t token,
                   SparseScratch& scratch) {
    const DeltaMatrix& m = *a.delta;
    float* y = a.y + token * a.y_stride;
    WeightedValues parts[kMostParts];
    int64_t n_parts = 0;
    auto part = [&](const DeltaValues& v, float weight) {
        parts[n_parts++] = {v.type, v.data, weight * v.scale};
    };
    if (m.shared.data) part(m.shared, 1.0f);
    for (int64_t j = 0; j < a.routes.k; ++j)
        part(m.expert(a.routes.expert(token, j)), a.routes.weight(token, j));
    for (int64_t b = 0; b < m.n_blocks; ++b) {
        const int32_t* row_ptr = m.block_rows(b);
        const float* x = a.x + token * a.x_stride + b * m.block_columns;
        for_row_groups(row_ptr, rows, [&](int64_t r, int64_t n_rows, int64_t, int64_t) {
            ops.rows_dot(row_ptr + r, n_rows, m.col, parts, n_parts, x, y + r, scratch.values());
        });
    }
}

// Routing weights sum to 1, so the shared part added to every expert's values is added once in all.
void add_tile(const SparseDeltaArgs& a, const CpuOps& ops, Range rows, int64_t block,
              const TokenTiles::Tile& of, const uint8_t* packed, SparseScratch& scratch) {
    const DeltaMatrix& m = *a.delta;
    const bool shared = m.shared.data != nullptr;
    const TileOps& tile = tile_ops(m, ops);
    const int32_t* row_ptr = m.block_rows(block);
    packed += block * m.block_columns * tile.column_bytes(of.n_slots);
    float* y[kTokenTile];
    float weight[kTokenTile];
    for (int32_t t = 0; t < of.n_slots; ++t) weight[t] = of.slots[t].weight;
    for (Range span{rows.begin, 0}; span.begin < rows.end; span.begin = span.end) {
        span.end = std::min(rows.end, (span.begin / kSpanRows + 1) * kSpanRows);
        if (row_ptr[span.begin] == row_ptr[span.end]) continue;
        const auto sums = [&](int64_t r) { return scratch.sums() + (r - span.begin) * kTokenTile; };
        int64_t done = span.begin;
        for_row_groups(row_ptr, span, [&](int64_t r, int64_t n_rows, int64_t begin, int64_t n) {
            std::fill(sums(done), sums(r), 0.0f);  // groups without positions
            if (shared) add_values(ops, m.shared, begin, n, 1.0f, false, scratch.values());
            if (a.routes.k > 0)
                add_values(ops, m.expert(of.expert), begin, n, 1.0f, shared, scratch.values());
            tile.rows(row_ptr + r, n_rows, m.col, scratch.values(), begin, packed, of.n_slots, sums(r));
            done = r + n_rows;
        });
        for (int32_t t = 0; t < of.n_slots; ++t) y[t] = a.y + of.slots[t].token * a.y_stride + span.begin;
        ops.spread_tile(scratch.sums(), done - span.begin, of.n_slots, weight, y);
    }
}

}  // namespace

void SparseScratch::reserve(const DeltaMatrix& m, int64_t n_tokens, int64_t k) {
    auto grow = [](auto& v, int64_t n) {
        if (static_cast<int64_t>(v.size()) < n) v.resize(n);
    };
    int64_t longest = 0;
    for (int64_t r = 0; r < m.n_blocks * m.n_rows && !m.empty(); ++r)
        longest = std::max<int64_t>(longest, m.row_ptr[r + 1] - m.row_ptr[r]);
    // A group is at most kGroupPositions or one row, plus the block it starts in and the one it ends in.
    grow(values_, std::max(kGroupPositions, longest) + 2 * kQ8Block);
    grow(sums_, kSpanRows * kTokenTile);
    if (n_tokens >= kMinTileTokens) tiles.reserve(n_tokens, k, m.n_experts);
}

size_t SparseScratch::bound(int64_t n_cols, int64_t n_tokens, int64_t k, int64_t n_experts) {
    const int64_t floats = std::max(kGroupPositions, n_cols) + 2 * kQ8Block + kSpanRows * kTokenTile;
    return sizeof(float) * floats + TokenTiles::bound(n_tokens, k, n_experts);
}

// A shared part holds whole weights of the base, which a coarse tile would round.
const TileOps& tile_ops(const DeltaMatrix& m, const CpuOps& ops) {
    return !m.shared.data && m.type == ValueType::q8_0 ? *ops.coarse_tile : *ops.tile;
}

void sparse_delta_add(const SparseDeltaArgs& a, const CpuOps& ops, int ith, int nth, SparseScratch& scratch) {
    const DeltaMatrix& m = *a.delta;
    if (m.empty() || (a.routes.k == 0 && !m.shared.data)) return;
    const Range rows = thread_rows(m, ith, nth);
    if (rows.begin >= rows.end) return;
    if (a.n_tokens < kMinTileTokens) {
        for (int64_t t = 0; t < a.n_tokens; ++t) add_one_token(a, ops, rows, t, scratch);
        return;
    }
    const int64_t stride = tile_stride(tile_ops(m, ops), m.n_cols);
    scratch.tiles.group({a.routes, a.n_tokens, m.n_experts});
    for (int64_t b = 0; b < m.n_blocks; ++b) {
        const uint8_t* packed = a.tiles;
        for (const TokenTiles::Tile& t : scratch.tiles.tiles()) {
            add_tile(a, ops, rows, b, t, packed, scratch);
            packed += stride;
        }
    }
}

}  // namespace sardine
