#include "delta_arrays.h"

#include "sardine/error.h"

namespace sardine::python {
namespace {

int64_t values_size(const std::string& type, int64_t n) {
    return type == "f32" ? 4 * n : type == "f16" ? 2 * n : (n + 31) / 32 * 34;
}

}  // namespace

ValueType value_type(const std::string& name) {
    return name == "f32" ? ValueType::f32 : name == "f16" ? ValueType::f16 : ValueType::q8_0;
}

DeltaMatrix view_delta(const Array<int32_t>& row_ptr, const Array<uint16_t>& col, const Array<uint8_t>& val,
                       const std::string& type, const Array<float>& scale, int64_t n_rows, int64_t n_cols,
                       int64_t block_columns, const std::optional<Array<uint8_t>>& shared,
                       const std::string& shared_type, float shared_scale) {
    DeltaMatrix m{.n_rows = n_rows, .n_cols = n_cols};
    if (n_rows < 1 || n_cols < 1 || block_columns < 1 || block_columns > 65536)
        throw InvalidArgument("the matrix or its blocks are empty");
    m.block_columns = block_columns;
    m.n_blocks = (n_cols + block_columns - 1) / block_columns;
    m.n_positions = col.size();
    m.n_experts = static_cast<int32_t>(scale.size());
    m.type = value_type(type);
    const int64_t size = values_size(type, m.n_positions);
    if (row_ptr.size() != m.n_blocks * n_rows + 1 || m.n_experts < 1 || m.n_experts > 256 ||
        val.size() != size * m.n_experts)
        throw InvalidArgument("the arrays' sizes do not fit the matrix");
    m.row_ptr = row_ptr.data();
    m.col = col.data();
    m.val = val.data();
    m.val_stride = size;
    m.scale = scale.data();
    if (shared) {
        if (shared->size() != values_size(shared_type, m.n_positions))
            throw InvalidArgument("the shared array's size does not fit the matrix");
        m.shared = {value_type(shared_type), shared->data(), shared_scale};
    }
    validate_delta(m, 1, [](const char* part, const std::string& what) {
        throw InvalidArgument(std::string(part) + ": " + what);
    });
    return m;
}

void check_routes(const DeltaMatrix& d, const Array<float>& routes, const Array<float>& x) {
    if (x.ndim() != 2 || x.shape(1) != d.n_cols || routes.ndim() != 2 || routes.shape(0) != x.shape(0))
        throw InvalidArgument("x must be [n_tokens, n_cols] and routes [n_tokens, 2k]");
    const int64_t k = routes.shape(1) / 2;
    for (int64_t t = 0; t < x.shape(0); ++t)
        for (int64_t j = 0; j < k; ++j)
            if (!(routes.at(t, k + j) >= 0 && routes.at(t, k + j) < static_cast<float>(d.n_experts)))
                throw InvalidArgument("routes name an expert that is not there");
}

}  // namespace sardine::python
