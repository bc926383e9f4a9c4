#include <ggml.h>

#include <cstring>

#include "kernels/q8_block.h"
#include "kernels/sparse_ops.h"

namespace sardine {
namespace {

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
            ggml_fp16_t v;
            std::memcpy(&v, val + 2 * (begin + i), 2);
            put(out, i, weight * ggml_fp16_to_fp32(v), accumulate);
        }
    } else {
        const auto* blocks = reinterpret_cast<const Q8Block*>(val) + begin / kQ8Block;
        for (int64_t b = 0; b * kQ8Block < n; ++b) {
            const float d = weight * ggml_fp16_to_fp32(blocks[b].d);
            for (int64_t i = 0; i < kQ8Block; ++i) put(out, b * kQ8Block + i, d * blocks[b].q[i], accumulate);
        }
    }
}

void rows_dot(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v, int64_t begin,
              const float* x, float* y) {
    for (int64_t r = 0; r < n_rows; ++r) {
        float sum = 0.0f;
        for (int64_t p = row_ptr[r]; p < row_ptr[r + 1]; ++p) sum += v[p - begin] * x[col[p]];
        y[r] += sum;
    }
}

void rows_tile(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const float* v, int64_t begin,
               const float* xt, float* acc) {
    for (int64_t r = 0; r < n_rows; ++r, acc += kTokenTile) {
        for (int t = 0; t < kTokenTile; ++t) acc[t] = 0.0f;
        for (int64_t p = row_ptr[r]; p < row_ptr[r + 1]; ++p) {
            const float w = v[p - begin];
            const float* xc = xt + static_cast<int64_t>(col[p]) * kTokenTile;
            for (int t = 0; t < kTokenTile; ++t) acc[t] += w * xc[t];
        }
    }
}

}  // namespace

const SparseOps kSparseOpsPortable = {"portable", add_values, rows_dot, rows_tile};

}  // namespace sardine
