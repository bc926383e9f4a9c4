// A packed delta of the tests' arrays.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>

#include "bindings.h"
#include "delta_pack.h"

namespace sardine::python {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

ValueType value_type(const std::string& name);

// Views the arrays, in the file's layout. Throws InvalidArgument unless they are what a file may hold.
DeltaMatrix view_delta(const Array<int32_t>& row_ptr, const Array<uint16_t>& col, const Array<uint8_t>& val,
                       const std::string& type, const Array<float>& scale, int64_t n_rows, int64_t n_cols,
                       int64_t block_columns, const std::optional<Array<uint8_t>>& shared,
                       const std::string& shared_type, float shared_scale);

// Throws InvalidArgument unless routes are [n_tokens, 2k] of the matrix's experts and x is [n_tokens,
// n_cols].
void check_routes(const DeltaMatrix& d, const Array<float>& routes, const Array<float>& x);

}  // namespace sardine::python
