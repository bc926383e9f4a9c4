// The tokens of a batch in tiles of one expert each, and their activations as the kernels of tiles read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu_ops.h"
#include "routing.h"

namespace sardine {

// Below this many tokens each goes through the single-token path: tiles would be mostly padding.
constexpr int64_t kMinTileTokens = 5;

// Which tokens a batch has and where they go. routes.k is 0 where no experts act: all tokens are one group.
struct TokenRoutes {
    Routes routes;
    int64_t n_tokens;
    int64_t n_experts;
};

// One thread's list of tiles, sized ahead so that nothing is allocated per batch.
class TokenTiles {
 public:
    struct Slot {
        int32_t token;
        float weight;
    };
    struct Tile {
        int32_t expert;
        int32_t n_slots;  // 1 to kTokenTile
        const Slot* slots;
    };

    void reserve(int64_t n_tokens, int64_t k, int64_t n_experts);
    void group(const TokenRoutes& r);
    std::span<const Tile> tiles() const { return {tiles_.data(), n_tiles_}; }
    size_t bytes() const { return sizeof(Slot) * slots_.size() + sizeof(Tile) * tiles_.size(); }
    // At most what reserve() takes.
    static size_t bound(int64_t n_tokens, int64_t k, int64_t n_experts);

 private:
    std::vector<Slot> slots_;
    std::vector<Tile> tiles_;  // the first n_tiles_: a copy of this has room for as many
    size_t n_tiles_ = 0;
};

// Bytes between the packed tiles of rows of n_cols, and of all of them at most, with room to align them.
int64_t tile_stride(const TileOps& ops, int64_t n_cols);
int64_t packed_bytes(const TileOps& ops, int64_t n_cols, int64_t n_tokens, int64_t k, int64_t n_experts);
// Where the first tile lies in memory of packed_bytes().
uint8_t* packed_begin(void* memory);

// Packs the tiles of x, n_tokens rows of n_cols floats that lie x_stride apart. Thread ith of nth does its
// share; `out` is packed_begin().
void pack_tiles(const TileOps& ops, const TokenRoutes& r, const float* x, int64_t x_stride, int64_t n_cols,
                int ith, int nth, TokenTiles& scratch, uint8_t* out);

}  // namespace sardine
