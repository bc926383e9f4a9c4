// y[t] += shared @ x[t] + sum over the experts e of token t of w_te * (Delta_e @ x[t]), for one FFN matrix.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "delta_pack.h"
#include "kernels/cpu_ops.h"
#include "kernels/token_tiles.h"
#include "routing.h"

namespace sardine {

// routes.k is 0 where no experts act and the shared part alone is added.
// x: n_tokens rows of m.n_cols floats, x_stride floats apart; y: rows of m.n_rows floats, y_stride apart.
// From kMinTileTokens tokens on x is read in tiles: pack_tiles() of tile_ops() and these routes.
struct SparseDeltaArgs {
    const DeltaMatrix* delta;
    Routes routes;
    int64_t n_tokens;
    const float* x;
    int64_t x_stride;
    const uint8_t* tiles;
    float* y;
    int64_t y_stride;
};

// Working memory of one thread, sized ahead so that the kernels never allocate.
class SparseScratch {
 public:
    // Makes room for `m` and batches of up to n_tokens tokens with k experts each (k = 0: shared part alone).
    void reserve(const DeltaMatrix& m, int64_t n_tokens, int64_t k);

    // At most what reserve() leaves for matrices of up to n_cols columns; bytes() is what it did.
    static size_t bound(int64_t n_cols, int64_t n_tokens, int64_t k, int64_t n_experts);

    float* values() { return values_.data(); }
    float* sums() { return sums_.data(); }
    size_t bytes() const { return sizeof(float) * (values_.size() + sums_.size()) + tiles.bytes(); }

    TokenTiles tiles;

 private:
    std::vector<float> values_;  // one row group's values
    std::vector<float> sums_;    // [rows of a span][kTokenTile]
};

// The tiles that a matrix's deltas read.
const TileOps& tile_ops(const DeltaMatrix& m, const CpuOps& ops);

// Thread ith of nth does its share of the rows: shares are equal in positions and touch disjoint parts of y.
void sparse_delta_add(const SparseDeltaArgs& args, const CpuOps& ops, int ith, int nth,
                      SparseScratch& scratch);

// The obvious loop, in double; what the fast path is tested against.
void sparse_delta_add_reference(const SparseDeltaArgs& args);

}  // namespace sardine
