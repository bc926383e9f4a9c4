// ggml's Q8_0 block: 32 values q * d.
#pragma once

#include <cstdint>

namespace sardine {

constexpr int64_t kQ8Block = 32;

struct Q8Block {
    uint16_t d;  // f16
    int8_t q[kQ8Block];
};
static_assert(sizeof(Q8Block) == 34, "layout of ggml's block_q8_0");

}  // namespace sardine
