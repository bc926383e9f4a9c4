#include "quantize.h"

#include <ggml.h>

#include <cctype>

#include "parallel.h"
#include "sardine/error.h"

namespace sardine {
namespace {

std::string lower(std::string s) {
    for (char& c : s) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return s;
}

ggml_type find_type(const std::string& name) {
    for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        const auto type = static_cast<ggml_type>(t);
        if (ggml_blck_size(type) > 0 && ggml_type_size(type) > 0 &&
            lower(name) == lower(ggml_type_name(type))) {
            const auto* traits = ggml_get_type_traits(type);
            if (type != GGML_TYPE_F32 && !(traits->to_float && traits->from_float_ref)) break;
            // The 8-bit types of activations have no quantizer for weights.
            if (type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K || ggml_quantize_requires_imatrix(type))
                break;
            return type;
        }
    }
    throw InvalidArgument("'" + name + "' is not a type that can be quantized to");
}

}  // namespace

size_t quantized_row_size(const std::string& name, int64_t n_cols) {
    const ggml_type type = find_type(name);
    if (n_cols <= 0 || n_cols % ggml_blck_size(type) != 0)
        throw InvalidArgument("rows of " + std::to_string(n_cols) + " values are not whole " + name +
                              " blocks of " + std::to_string(ggml_blck_size(type)));
    return ggml_row_size(type, n_cols);
}

void quantize_rows(const std::string& name, const float* src, uint8_t* dst, int64_t n_rows, int64_t n_cols,
                   int n_threads) {
    const size_t row_size = quantized_row_size(name, n_cols);
    const ggml_type type = find_type(name);
    ggml_quantize_init(type);  // tables; guarded by ggml
    // Chunks of about a megabyte of input keep the threads even.
    const int64_t grain = std::max<int64_t>(1, (1 << 18) / n_cols);
    parallel_for(n_rows, n_threads, grain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r += grain) {
            const int64_t n = std::min(grain, end - r);
            ggml_quantize_chunk(type, src + r * n_cols, dst + r * row_size, 0, n, n_cols, nullptr);
        }
    });
}

void dequantize_rows(const std::string& name, const uint8_t* src, float* dst, int64_t n_rows, int64_t n_cols,
                     int n_threads) {
    const size_t row_size = quantized_row_size(name, n_cols);
    const ggml_to_float_t to_float = ggml_get_type_traits(find_type(name))->to_float;
    if (!to_float) throw InvalidArgument("'" + name + "' is not a quantized type");
    parallel_for(n_rows, n_threads, std::max<int64_t>(1, (1 << 18) / n_cols),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r)
                         to_float(src + r * row_size, dst + r * n_cols, n_cols);
                 });
}

}  // namespace sardine
