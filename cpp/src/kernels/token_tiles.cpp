#include "kernels/token_tiles.h"

#include <algorithm>

namespace sardine {
namespace {

constexpr int64_t kLine = 64;
// Columns that a thread packs at a time: small enough to share a single tile among many threads.
constexpr int64_t kPackColumns = 256;

int64_t max_tiles(int64_t n_tokens, int64_t k, int64_t n_experts) {
    const int64_t n_slots = n_tokens * std::max<int64_t>(k, 1);
    const int64_t n_groups = std::min(k > 0 ? n_experts : 1, n_slots);
    return (n_slots + n_groups * (kTokenTile - 1)) / kTokenTile;
}

}  // namespace

void TokenTiles::reserve(int64_t n_tokens, int64_t k, int64_t n_experts) {
    const auto n_slots = static_cast<size_t>(n_tokens * std::max<int64_t>(k, 1));
    if (slots_.size() < n_slots) slots_.resize(n_slots);
    const auto n_tiles = static_cast<size_t>(max_tiles(n_tokens, k, n_experts));
    if (tiles_.size() < n_tiles) tiles_.resize(n_tiles);
}

size_t TokenTiles::bound(int64_t n_tokens, int64_t k, int64_t n_experts) {
    return sizeof(Slot) * n_tokens * std::max<int64_t>(k, 1) +
           sizeof(Tile) * max_tiles(n_tokens, k, n_experts);
}

// Slots sorted by expert, in the order of the tokens.
void TokenTiles::group(const TokenRoutes& r) {
    int64_t bounds[kMaxExperts + 1] = {};
    const int64_t k = r.routes.k, n_groups = k > 0 ? r.n_experts : 1;
    if (k == 0) {
        for (int64_t t = 0; t < r.n_tokens; ++t) slots_[t] = {static_cast<int32_t>(t), 1.0f};
        bounds[1] = r.n_tokens;
    } else {
        for (int64_t t = 0; t < r.n_tokens; ++t)
            for (int64_t j = 0; j < k; ++j) ++bounds[r.routes.expert(t, j) + 1];
        for (int64_t e = 0; e < n_groups; ++e) bounds[e + 1] += bounds[e];
        int64_t next[kMaxExperts];
        std::copy(bounds, bounds + n_groups, next);
        for (int64_t t = 0; t < r.n_tokens; ++t)
            for (int64_t j = 0; j < k; ++j)
                slots_[next[r.routes.expert(t, j)]++] = {static_cast<int32_t>(t), r.routes.weight(t, j)};
    }
    n_tiles_ = 0;
    for (int64_t e = 0; e < n_groups; ++e)
        for (int64_t s = bounds[e]; s < bounds[e + 1]; s += kTokenTile)
            tiles_[n_tiles_++] = {static_cast<int32_t>(e),
                                  static_cast<int32_t>(std::min<int64_t>(kTokenTile, bounds[e + 1] - s)),
                                  slots_.data() + s};
}

int64_t tile_stride(const TileOps& ops, int64_t n_cols) {
    return (n_cols * ops.column_bytes(kTokenTile) + kLine - 1) / kLine * kLine;
}

int64_t packed_bytes(const TileOps& ops, int64_t n_cols, int64_t n_tokens, int64_t k, int64_t n_experts) {
    return max_tiles(n_tokens, k, n_experts) * tile_stride(ops, n_cols) + kLine;
}

uint8_t* packed_begin(void* memory) {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + kLine - 1) / kLine * kLine);
}

void pack_tiles(const TileOps& ops, const TokenRoutes& r, const float* x, int64_t x_stride, int64_t n_cols,
                int ith, int nth, TokenTiles& scratch, uint8_t* out) {
    scratch.group(r);
    const auto tiles = scratch.tiles();
    const int64_t stride = tile_stride(ops, n_cols);
    const int64_t n_parts = (n_cols + kPackColumns - 1) / kPackColumns;
    const int64_t n_work = n_parts * static_cast<int64_t>(tiles.size());
    for (int64_t i = n_work * ith / nth; i < n_work * (ith + 1) / nth; ++i) {
        const TokenTiles::Tile& tile = tiles[i / n_parts];
        const int64_t c = i % n_parts * kPackColumns;
        const float* rows[kTokenTile];
        for (int32_t s = 0; s < tile.n_slots; ++s) rows[s] = x + tile.slots[s].token * x_stride + c;
        ops.pack(rows, tile.n_slots, std::min(kPackColumns, n_cols - c),
                 out + i / n_parts * stride + c * ops.column_bytes(tile.n_slots));
    }
}

}  // namespace sardine
