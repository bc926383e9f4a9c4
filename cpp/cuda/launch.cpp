#include "launch.h"

#include <algorithm>

#include "delta_rows.cuh"

namespace sardine::device {
namespace {

// The compiler keeps a block of 1024 threads possible, that is 64 registers a thread, so that no more than
// these run at once.
constexpr int kThreadsAtOnce = 1024;
constexpr size_t kReserved = 1024;  // bytes of a multiprocessor's shared memory that each block costs besides

}  // namespace

RowsShape rows_shape(const Limits& limits, int64_t width, int64_t n_positions) {
    const int threads = std::min(limits.threads, kThreadsAtOnce);
    RowsShape best;
    int most_warps = 0;
    for (const bool staged : {true, false}) {
        const size_t stage = staged ? sizeof(float) * width : 0;
        for (const int n_warps : {32, 24, 16, 8}) {
            const size_t shared = stage + n_warps * kRowsWarpBytes;
            if (shared > limits.shared_block || n_warps * grid::kWarp > threads) continue;
            const int fit = std::min(static_cast<int>(limits.shared_all / (shared + kReserved)),
                                     threads / (n_warps * grid::kWarp));
            if (fit * n_warps <= most_warps) continue;
            most_warps = fit * n_warps;
            best = {.n_blocks = fit * limits.n_multiprocessors,
                    .n_warps = n_warps,
                    .staged = staged,
                    .shared = shared};
        }
        if (most_warps >= 16) break;  // gathers from shared memory are worth fewer warps
        most_warps = 0;
    }
    // No more warps than there are chunks.
    const int64_t chunks = std::max<int64_t>(1, (n_positions + kChunk - 1) / kChunk);
    best.n_blocks =
        static_cast<int>(std::min<int64_t>(best.n_blocks, (chunks + best.n_warps - 1) / best.n_warps));
    return best;
}

std::vector<std::vector<int32_t>> split_rows(const std::vector<const int32_t*>& row_ptr, int64_t n_rows,
                                             int64_t n_blocks, int n_warps) {
    // before(v): positions, and a quarter for every row, whose end costs something, of the virtual rows [0,
    // v).
    auto positions = [&](size_t m, int64_t row) {
        int64_t n = 0;
        for (int64_t b = 0; row_ptr[m] && b < n_blocks; ++b)
            n += row_ptr[m][b * n_rows + row] - row_ptr[m][b * n_rows];
        return 4 * n + row;
    };
    auto before = [&](int64_t v) {
        int64_t n = 0;
        for (size_t m = 0; m < row_ptr.size(); ++m)
            n += positions(m, std::clamp<int64_t>(v - static_cast<int64_t>(m) * n_rows, 0, n_rows));
        return n;
    };
    const int64_t all = static_cast<int64_t>(row_ptr.size()) * n_rows;
    const int64_t work = before(all);
    std::vector<std::vector<int32_t>> out(row_ptr.size(), std::vector<int32_t>(n_warps + 1));
    int64_t v = 0;
    for (int w = 0; w <= n_warps; ++w) {
        const int64_t target = static_cast<int64_t>(static_cast<double>(work) * w / n_warps);
        int64_t low = v, high = all;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            (before(middle) < target ? low : high) = before(middle) < target ? middle + 1 : middle;
        }
        v = w == n_warps ? all : low;
        for (size_t m = 0; m < row_ptr.size(); ++m)
            out[m][w] =
                static_cast<int32_t>(std::clamp<int64_t>(v - static_cast<int64_t>(m) * n_rows, 0, n_rows));
    }
    return out;
}

int row_lanes(double positions_of_a_row) {
    return positions_of_a_row >= 96 ? 32 : positions_of_a_row >= 24 ? 16 : positions_of_a_row >= 8 ? 8 : 4;
}

}  // namespace sardine::device
