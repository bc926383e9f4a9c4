#include "quantize.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <atomic>
#include <cctype>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "sardine/error.h"

namespace sardine {
namespace {

// Every type that ggml_quantize_chunk makes from weights and that llama-quantize offers; it aborts on others.
constexpr ggml_type kTypes[] = {
    GGML_TYPE_F32,    GGML_TYPE_F16,    GGML_TYPE_BF16,    GGML_TYPE_Q4_0,  GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0,   GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,    GGML_TYPE_Q2_K,  GGML_TYPE_Q3_K,
    GGML_TYPE_Q4_K,   GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,    GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,
    GGML_TYPE_IQ2_S,  GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ3_XXS,
    GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
};
constexpr int64_t kGrain = 1 << 15;  // values at a time: their f32 copy stays in the second-level cache

std::string lower(std::string s) {
    for (char& c : s) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return s;
}

ggml_type find_type(const std::string& name) {
    for (const ggml_type type : kTypes)
        if (lower(name) == lower(ggml_type_name(type))) return type;
    throw InvalidArgument("'" + name + "' is not a type that can be quantized to");
}

void widen(StoredType stored, const void* src, float* dst, int64_t n) {
    switch (stored) {
        case StoredType::f64: {
            const auto* p = static_cast<const double*>(src);
            for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<float>(p[i]);
            return;
        }
        case StoredType::f32:
            std::memcpy(dst, src, n * sizeof(float));
            return;
        case StoredType::f16:
            ggml_cpu_fp16_to_fp32(static_cast<const ggml_fp16_t*>(src), dst, n);
            return;
        case StoredType::bf16: {
            const auto* p = static_cast<const uint16_t*>(src);
            for (int64_t i = 0; i < n; ++i) {
                const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
                std::memcpy(dst + i, &bits, sizeof bits);
            }
            return;
        }
    }
}

bool all_within(const float* v, int64_t n, float limit) {
    int outside = 0;
    // The negation also catches NaN, which compares false.
    for (int64_t i = 0; i < n; ++i) outside |= !(std::fabs(v[i]) <= limit);
    return !outside;
}

}  // namespace

StoredType find_stored_type(const std::string& name) {
    if (name == "f64") return StoredType::f64;
    if (name == "f32") return StoredType::f32;
    if (name == "f16") return StoredType::f16;
    if (name == "bf16") return StoredType::bf16;
    throw InvalidArgument("'" + name + "' is not a stored type: expected f64, f32, f16 or bf16");
}

size_t stored_size(StoredType type) {
    return type == StoredType::f64 ? 8 : type == StoredType::f32 ? 4 : 2;
}

size_t quantized_row_size(const std::string& name, int64_t n_cols) {
    const ggml_type type = find_type(name);
    if (n_cols <= 0 || n_cols % ggml_blck_size(type) != 0)
        throw InvalidArgument("rows of " + std::to_string(n_cols) + " values are not whole " + name +
                              " blocks of " + std::to_string(ggml_blck_size(type)));
    return ggml_row_size(type, n_cols);
}

bool requires_importance(const std::string& type) {
    return ggml_quantize_requires_imatrix(find_type(type));
}

float largest_value(const std::string& name) {
    switch (find_type(name)) {
        case GGML_TYPE_F32:
            return FLT_MAX;
        case GGML_TYPE_BF16:
            return 0x1.fep127f;
        default:  // F16, and the types whose scales are F16 and at most the largest magnitude of a block
            return 65504.0f;
    }
}

int64_t source_row(int64_t r, int64_t head_rows) {
    if (head_rows == 0) return r;
    const int64_t in_head = r % head_rows;
    return r - in_head + in_head % 2 * (head_rows / 2) + in_head / 2;
}

bool quantize_rows(const std::string& name, const Rows& rows, uint8_t* dst, int n_threads) {
    const size_t row_size = quantized_row_size(name, rows.n_cols);
    const ggml_type type = find_type(name);
    if (rows.head_rows < 0 || rows.head_rows % 2 || (rows.head_rows && rows.n_rows % rows.head_rows))
        throw InvalidArgument(std::to_string(rows.n_rows) +
                              " rows are not whole heads of an even number of rows");
    if (!rows.importance && ggml_quantize_requires_imatrix(type))
        throw InvalidArgument(name + " requires an importance matrix");
    ggml_quantize_init(type);  // tables; guarded by ggml
    const float limit = largest_value(name);
    const size_t stride = rows.n_cols * stored_size(rows.stored);
    const int64_t grain = std::max<int64_t>(1, kGrain / rows.n_cols);
    // Whoever is free takes the next rows, so that a core that is busy elsewhere holds up nothing.
    std::atomic<int64_t> next{0};
    std::atomic<bool> ok{true};
    const int64_t n_parts = std::clamp<int64_t>((rows.n_rows + grain - 1) / grain, 1, std::max(1, n_threads));
    parallel_for(n_parts, static_cast<int>(n_parts), 1, [&](int64_t, int64_t) {
        std::vector<float> values(grain * rows.n_cols);
        for (int64_t r; ok && (r = next.fetch_add(grain)) < rows.n_rows;) {
            const int64_t n = std::min(grain, rows.n_rows - r), count = n * rows.n_cols;
            const auto* src = static_cast<const uint8_t*>(rows.src);
            const float* data = values.data();
            if (rows.head_rows) {
                for (int64_t i = 0; i < n; ++i)
                    widen(rows.stored, src + source_row(r + i, rows.head_rows) * stride,
                          values.data() + i * rows.n_cols, rows.n_cols);
            } else if (rows.stored == StoredType::f32) {
                data = static_cast<const float*>(rows.src) + r * rows.n_cols;
            } else {
                widen(rows.stored, src + r * stride, values.data(), count);
            }
            uint8_t* out = dst + r * row_size;
            if (!all_within(data, count, limit)) {
                ok = false;
                return;
            }
            ggml_quantize_chunk(type, data, out, 0, n, rows.n_cols, rows.importance);
            if (ggml_is_quantized(type) && !ggml_validate_row_data(type, out, n * row_size)) ok = false;
        }
    });
    return ok;
}

void dequantize_rows(const std::string& name, const uint8_t* src, float* dst, int64_t n_rows, int64_t n_cols,
                     int n_threads) {
    const size_t row_size = quantized_row_size(name, n_cols);
    const ggml_type type = find_type(name);
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (type == GGML_TYPE_F32) {
        std::memcpy(dst, src, n_rows * row_size);
        return;
    }
    parallel_for(n_rows, n_threads, std::max<int64_t>(1, (1 << 18) / n_cols),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r)
                         to_float(src + r * row_size, dst + r * n_cols, n_cols);
                 });
}

}  // namespace sardine
