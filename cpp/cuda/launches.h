// The kernels' grids, the same on a device and in the emulation: Launch::run(kernel, shape, args) starts one.
#pragma once

#include "delta_rows.cuh"
#include "delta_tiles.cuh"
#include "device.h"
#include "route.cuh"

namespace sardine::device {

struct GridShape {
    int x = 1, y = 1, threads = grid::kWarp;
    size_t shared = 0;
};

using RowsKernel = void (*)(RowsArgs);

template <ValueType T>
RowsKernel rows_kernel(int k, bool shared) {
    if (shared) return k == 2 ? delta_rows<T, 2, SharedPart::any> : delta_rows<T, 0, SharedPart::any>;
    return k == 2 ? delta_rows<T, 2, SharedPart::none> : delta_rows<T, 0, SharedPart::none>;
}

inline RowsKernel rows_kernel(ValueType type, int k, bool shared) {
    return type == ValueType::f32   ? rows_kernel<ValueType::f32>(k, shared)
           : type == ValueType::f16 ? rows_kernel<ValueType::f16>(k, shared)
                                    : rows_kernel<ValueType::q8_0>(k, shared);
}

template <typename Launch>
class Launches : public Device {
 public:
    const char* route(const RouteArgs& a) override {
        return self().run(device::route, {.x = a.n_tokens, .threads = kRouteThreads, .shared = kRouteBytes},
                          a);
    }
    const char* group(const GroupArgs& a) override {
        return self().run(device::group, {.x = a.k, .threads = kGroupThreads, .shared = kGroupBytes}, a);
    }
    const char* delta_rows(const RowsArgs& a, const RowsShape& s) override {
        // Two matrices of different types, or of which one alone has a shared part, are two launches.
        const bool same = a.delta[0].values.type == a.delta[1].values.type &&
                          !a.delta[0].shared.data == !a.delta[1].shared.data;
        if (a.n_matrices == 2 && !same) {
            for (int m = 0; m < 2; ++m) {
                RowsArgs one = a;
                one.n_matrices = 1;
                one.delta[0] = a.delta[m];
                one.y[0] = a.y[m];
                if (const char* e = delta_rows(one, s)) return e;
            }
            return nullptr;
        }
        RowsArgs args = a;
        args.staged = s.staged;
        return self().run(
            rows_kernel(a.delta[0].values.type, a.k, a.delta[0].shared.data != nullptr),
            {.x = s.n_blocks, .y = a.n_tokens, .threads = s.n_warps * grid::kWarp, .shared = s.shared}, args);
    }
    const char* delta_tiles(const TilesArgs& a) override {
        const int threads = tile_threads(a.delta.n_rows);
        const int rows = threads / grid::kWarp * kWarpRows;
        TilesArgs args = a;
        args.stage_columns =
            tile_bytes(kManyColumns, threads) <= self().limits().shared_block ? kManyColumns : kFewColumns;
        return self().run(device::delta_tiles,
                          {.x = a.n_tiles,
                           .y = (a.delta.n_rows + rows - 1) / rows,
                           .threads = threads,
                           .shared = tile_bytes(args.stage_columns, threads)},
                          args);
    }

 private:
    Launch& self() { return static_cast<Launch&>(*this); }
};

}  // namespace sardine::device
