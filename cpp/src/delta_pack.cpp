#include "delta_pack.h"

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/q8_block.h"
#include "parallel.h"

namespace sardine {
namespace {

constexpr int64_t kGrain = 1 << 16;

bool f16_finite(uint16_t bits) {
    return (bits & 0x7C00) != 0x7C00;
}

// The first index in [0, n) for which bad(i) holds, or n.
template <typename F>
int64_t first_bad(int64_t begin, int64_t end, const F& bad) {
    for (int64_t i = begin; i < end; ++i)
        if (bad(i)) return i;
    return end;
}

bool is_power_of_two(float s) {
    int exponent = 0;
    return s > 0.0f && std::isfinite(s) && std::frexp(s, &exponent) == 0.5f;
}

// Calls bad(i) for a value (for Q8_0: a block) that is not finite, if there is one among n positions.
void check_finite(const DeltaValues& values, int64_t n_positions, int n_threads,
                  const std::function<void(int64_t)>& bad) {
    const uint8_t* v = values.data;
    const int64_t n = values.type == ValueType::q8_0 ? (n_positions + kQ8Block - 1) / kQ8Block : n_positions;
    parallel_for(n, n_threads, kGrain, [&](int64_t begin, int64_t end) {
        int64_t i = end;
        if (values.type == ValueType::f32) {
            i = first_bad(begin, end, [&](int64_t k) {
                uint32_t bits;
                std::memcpy(&bits, v + 4 * k, 4);
                return (bits & 0x7F800000) == 0x7F800000;
            });
        } else if (values.type == ValueType::f16) {
            i = first_bad(begin, end, [&](int64_t k) {
                uint16_t bits;
                std::memcpy(&bits, v + 2 * k, 2);
                return !f16_finite(bits);
            });
        } else {
            const auto* blocks = reinterpret_cast<const Q8Block*>(v);
            i = first_bad(begin, end, [&](int64_t k) { return !f16_finite(blocks[k].d); });
        }
        if (i < end) bad(i);
    });
}

// How many of col[begin + 1, end) are not above the one before: in 16 bits at a time, so that it is done in
// vectors.
int64_t count_falls(const uint16_t* col, int64_t begin, int64_t end) {
    constexpr int64_t kChunk = 1 << 15;
    int64_t n = 0;
    for (int64_t p = begin + 1; p < end; p += kChunk) {
        const int64_t stop = std::min(end, p + kChunk);
        uint16_t falls = 0;
        for (int64_t i = p; i < stop; ++i) falls += col[i] <= col[i - 1];
        n += falls;
    }
    return n;
}

// The first of rows [begin, end), counted over all blocks, whose columns do not rise strictly below its
// block's width; or end.
int64_t first_bad_row(const DeltaMatrix& m, int64_t begin, int64_t end) {
    const int64_t first = m.row_ptr[begin];
    auto width = [&](int64_t r) { return m.block_width(r / m.n_rows); };
    // Falls may only lie between rows; risen columns are in range if the last one is.
    int64_t between = 0;
    bool bad = false;
    for (int64_t r = begin; r < end; ++r) {
        const int64_t p = m.row_ptr[r], q = m.row_ptr[r + 1];
        if (p == q) continue;
        between += p > first && m.col[p] <= m.col[p - 1];
        bad |= m.col[q - 1] >= width(r);
    }
    if (!bad && count_falls(m.col, first, m.row_ptr[end]) == between) return end;
    return first_bad(begin, end, [&](int64_t r) {
        const int64_t p = m.row_ptr[r], q = m.row_ptr[r + 1];
        return p < q && (count_falls(m.col, p, q) > 0 || m.col[q - 1] >= width(r));
    });
}

void check_values(const DeltaMatrix& m, int n_threads, const auto& fail) {
    for (int32_t e = 0; e < m.n_experts; ++e)
        if (!is_power_of_two(m.scale[e]))
            fail("scale", "the scale of expert " + std::to_string(e) + " is not a positive power of two");
    for (int32_t e = 0; e < m.n_experts; ++e)
        check_finite(m.expert(e), m.n_positions, n_threads, [&](int64_t i) {
            fail("val", "value (or block) " + std::to_string(i) + " of expert " + std::to_string(e) +
                            " is not finite");
        });
    if (!m.shared.data) return;
    if (!is_power_of_two(m.shared.scale))
        fail("shared_scale", "the scale of the shared part is not a positive power of two");
    check_finite(m.shared, m.n_positions, n_threads, [&](int64_t i) {
        fail("shared", "value (or block) " + std::to_string(i) + " of the shared part is not finite");
    });
}

}  // namespace

void validate_delta(const DeltaMatrix& m, int n_threads,
                    const std::function<void(const char*, const std::string&)>& fail) {
    const int64_t n_ptr = m.n_blocks * m.n_rows;
    if (m.row_ptr[0] != 0)
        fail("row_ptr", "row_ptr starts at " + std::to_string(m.row_ptr[0]) + ", expected 0");
    for (int64_t r = 0; r < n_ptr; ++r)
        if (m.row_ptr[r + 1] < m.row_ptr[r])
            fail("row_ptr", "row_ptr decreases at entry " + std::to_string(r + 1));
    if (m.row_ptr[n_ptr] != m.n_positions)
        fail("row_ptr", "row_ptr ends at " + std::to_string(m.row_ptr[n_ptr]) + ", expected the " +
                            std::to_string(m.n_positions) + " positions of col");

    parallel_for(n_ptr, n_threads, 256, [&](int64_t begin, int64_t end) {
        const int64_t r = first_bad_row(m, begin, end);
        if (r == end) return;
        const int64_t block = r / m.n_rows;
        fail("col", "row " + std::to_string(r % m.n_rows) + " of column block " + std::to_string(block) +
                        " has columns that do not rise strictly below " +
                        std::to_string(m.block_width(block)));
    });
    check_values(m, n_threads, fail);
}

}  // namespace sardine
