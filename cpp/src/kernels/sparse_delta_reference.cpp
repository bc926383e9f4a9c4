#include <ggml.h>

#include <cstring>

#include "kernels/q8_block.h"
#include "kernels/sparse_delta.h"

namespace sardine {
namespace {

double value_at(const DeltaValues& values, int64_t p) {
    const uint8_t* v = values.data;
    switch (values.type) {
        case ValueType::f32: {
            float f;
            std::memcpy(&f, v + 4 * p, 4);
            return values.scale * static_cast<double>(f);
        }
        case ValueType::f16: {
            ggml_fp16_t f;
            std::memcpy(&f, v + 2 * p, 2);
            return values.scale * static_cast<double>(ggml_fp16_to_fp32(f));
        }
        case ValueType::q8_0: {
            const auto& block = reinterpret_cast<const Q8Block*>(v)[p / kQ8Block];
            return values.scale * static_cast<double>(ggml_fp16_to_fp32(block.d)) * block.q[p % kQ8Block];
        }
    }
    return 0.0;
}

}  // namespace

void sparse_delta_add_reference(const SparseDeltaArgs& a) {
    const DeltaMatrix& m = *a.delta;
    if (m.empty()) return;
    for (int64_t t = 0; t < a.n_tokens; ++t)
        for (int64_t r = 0; r < m.n_rows; ++r) {
            double sum = 0.0;
            for (int64_t b = 0; b < m.n_blocks; ++b)
                for (int64_t p = m.block_rows(b)[r]; p < m.block_rows(b)[r + 1]; ++p) {
                    double v = m.shared.data ? value_at(m.shared, p) : 0.0;
                    for (int64_t j = 0; j < a.routes.k; ++j)
                        v += a.routes.weight(t, j) * value_at(m.expert(a.routes.expert(t, j)), p);
                    sum += v * a.x[t * a.x_stride + b * m.block_columns + m.col[p]];
                }
            a.y[t * a.y_stride + r] += static_cast<float>(sum);
        }
}

}  // namespace sardine
