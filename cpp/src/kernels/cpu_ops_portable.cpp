#include <cstring>

#include "kernels/attention_impl.h"
#include "kernels/cpu_ops.h"
#include "kernels/q8_block.h"

namespace sardine {
namespace {

// f16 to f32 without a table or a branch, so that the compiler can vectorise it.
float widen(uint16_t half) {
    const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
    float f;
    std::memcpy(&f, &magnitude, 4);
    f *= 0x1p112f;  // the exponents' difference; exact, subnormals included
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    bits |= magnitude >= 0x0F800000 ? 0x7F800000 : 0;  // infinities and NaN
    bits |= static_cast<uint32_t>(half & 0x8000) << 16;
    std::memcpy(&f, &bits, 4);
    return f;
}

void put(float* out, int64_t i, float v, bool accumulate) {
    out[i] = accumulate ? out[i] + v : v;
}

void add_values(ValueType type, const uint8_t* val, int64_t begin, int64_t n, float weight, bool accumulate,
                float* out) {
    if (type == ValueType::f32) {
        for (int64_t i = 0; i < n; ++i) {
            float v;
            std::memcpy(&v, val + 4 * (begin + i), 4);
            put(out, i, weight * v, accumulate);
        }
    } else if (type == ValueType::f16) {
        for (int64_t i = 0; i < n; ++i) {
            uint16_t v;
            std::memcpy(&v, val + 2 * (begin + i), 2);
            put(out, i, weight * widen(v), accumulate);
        }
    } else {
        const auto* blocks = reinterpret_cast<const Q8Block*>(val) + begin / kQ8Block;
        for (int64_t b = 0; b * kQ8Block < n; ++b) {
            const float d = weight * widen(blocks[b].d);
            for (int64_t i = 0; i < kQ8Block; ++i) put(out, b * kQ8Block + i, d * blocks[b].q[i], accumulate);
        }
    }
}

void rows_dot(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const WeightedValues* parts,
              int64_t n_parts, const float* x, float* y, float* scratch) {
    const int64_t begin = row_ptr[0] / kQ8Block * kQ8Block;
    for (int64_t j = 0; j < n_parts; ++j)
        add_values(parts[j].type, parts[j].data, begin, row_ptr[n_rows] - begin, parts[j].weight, j > 0,
                   scratch);
    for (int64_t r = 0; r < n_rows; ++r) {
        float sum[4] = {};  // one would wait for its own addition
        int64_t p = row_ptr[r];
        for (; p + 4 <= row_ptr[r + 1]; p += 4)
            for (int64_t i = 0; i < 4; ++i) sum[i] += scratch[p + i - begin] * x[col[p + i]];
        for (; p < row_ptr[r + 1]; ++p) sum[0] += scratch[p - begin] * x[col[p]];
        y[r] += sum[0] + sum[1] + (sum[2] + sum[3]);
    }
}

void rows_tile(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, float* v, int64_t begin,
               const uint8_t* tile, int64_t n_tokens, float* acc) {
    const auto* xt = reinterpret_cast<const float*>(tile);
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        for (int t = 0; t < kTokenTile; ++t) acc[t] = 0.0f;
        for (int64_t p = row_ptr[r]; p < row_ptr[r + 1]; ++p) {
            const float w = v[p - begin];
            const float* xc = xt + static_cast<int64_t>(col[p]) * kTokenTile;
            for (int t = 0; t < kTokenTile; ++t) acc[t] += w * xc[t];
        }
    }
}

struct Lanes {
    static constexpr int64_t kLanes = 4;
    static constexpr int kRegisters = 16;
    struct Reg {
        float v[kLanes];
    };
    static Reg set1(float x) {
        Reg r;
        for (float& v : r.v) v = x;
        return r;
    }
    static Reg zero() { return set1(0.0f); }
    static Reg fma(Reg a, Reg b, Reg c) {
        for (int64_t i = 0; i < kLanes; ++i) c.v[i] += a.v[i] * b.v[i];
        return c;
    }
    static float sum(Reg a) {
        for (int64_t n = kLanes / 2; n > 0; n /= 2)
            for (int64_t i = 0; i < n; ++i) a.v[i] += a.v[i + n];
        return a.v[0];
    }
    static Reg load(const float* p, int64_t n) {
        Reg r = zero();
        std::memcpy(r.v, p, n == kLanes ? sizeof r.v : n * sizeof(float));
        return r;
    }
    static void store(float* p, int64_t n, Reg r) {
        std::memcpy(p, r.v, n == kLanes ? sizeof r.v : n * sizeof(float));
    }
    static Reg load_kv(KvType type, const uint8_t* row, int64_t first, int64_t n) {
        if (type == KvType::f32) return load(reinterpret_cast<const float*>(row) + first, n);
        if (type == KvType::q8_0) {
            const auto& block = reinterpret_cast<const Q8Block*>(row)[first / kQ8Block];
            const float d = widen(block.d);
            Reg r;
            for (int64_t i = 0; i < kLanes; ++i) r.v[i] = d * block.q[first % kQ8Block + i];
            return r;
        }
        const auto* p = reinterpret_cast<const uint16_t*>(row) + first;
        Reg r = zero();
        if (n == kLanes)
            for (int64_t i = 0; i < kLanes; ++i) r.v[i] = widen(p[i]);
        else
            for (int64_t i = 0; i < n; ++i) r.v[i] = widen(p[i]);
        return r;
    }
};

const TileOps kTile = {plain_column_bytes, pack_tile_plain, rows_tile};

}  // namespace

int64_t plain_column_bytes(int64_t) {
    return kTokenTile * sizeof(float);
}

// [width][kTokenTile] floats
void pack_tile_plain(const float* const* rows, int64_t n_rows, int64_t width, uint8_t* tile) {
    auto* out = reinterpret_cast<float*>(tile);
    constexpr int64_t kStep = 64;
    for (int64_t c0 = 0; c0 < width; c0 += kStep)
        for (int64_t t = 0; t < kTokenTile; ++t)
            for (int64_t c = c0; c < width && c < c0 + kStep; ++c)
                out[c * kTokenTile + t] = t < n_rows ? rows[t][c] : 0.0f;
}

void spread_tile_plain(const float* acc, int64_t n_rows, int64_t n_tokens, const float* weight,
                       float* const* y) {
    for (int64_t t = 0; t < n_tokens; ++t)
        for (int64_t i = 0; i < n_rows; ++i) y[t][i] += weight[t] * acc[i * kTokenTile + t];
}

const CpuOps kCpuOpsPortable = {"portable",
                                add_values,
                                rows_dot,
                                &kTile,
                                &kTile,
                                spread_tile_plain,
                                attention_scores_impl<Lanes>,
                                attention_exp_impl<Lanes>,
                                attention_weigh_impl<Lanes>};

}  // namespace sardine
