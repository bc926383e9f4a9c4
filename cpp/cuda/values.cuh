// Eight values of one expert, or of the shared part, at a time.
#pragma once

#include "grid.h"
#include "views.h"

namespace sardine::device {

constexpr int kLaneValues = 8;  // a lane's share of a chunk: kChunk / kWarp

SARDINE_DEVICE uint16_t low_half(uint32_t w) {
    return static_cast<uint16_t>(w & 0xFFFF);
}
SARDINE_DEVICE uint16_t high_half(uint32_t w) {
    return static_cast<uint16_t>(w >> 16);
}

// What fetch() reads of the values [p, p + 8), p a multiple of 8, kept apart from its meaning so that several
// reads can be under way at once.
template <ValueType T>
struct Raw;

template <>
struct Raw<ValueType::f32> {
    grid::Words4 a, b;
    SARDINE_DEVICE void fetch(const Values& v, int64_t p) {
        const auto* words = reinterpret_cast<const grid::Words4*>(v.data + 4 * p);
        a = grid::load_once(words);
        b = grid::load_once(words + 1);
    }
    SARDINE_DEVICE void add(float weight, float* out) const {
        out[0] += weight * grid::bits_to_float(a.x);
        out[1] += weight * grid::bits_to_float(a.y);
        out[2] += weight * grid::bits_to_float(a.z);
        out[3] += weight * grid::bits_to_float(a.w);
        out[4] += weight * grid::bits_to_float(b.x);
        out[5] += weight * grid::bits_to_float(b.y);
        out[6] += weight * grid::bits_to_float(b.z);
        out[7] += weight * grid::bits_to_float(b.w);
    }
};

template <>
struct Raw<ValueType::f16> {
    grid::Words4 a;
    SARDINE_DEVICE void fetch(const Values& v, int64_t p) {
        a = grid::load_once(reinterpret_cast<const grid::Words4*>(v.data + 2 * p));
    }
    SARDINE_DEVICE void add(float weight, float* out) const {
        const uint32_t words[4] = {a.x, a.y, a.z, a.w};
        SARDINE_UNROLL
        for (int i = 0; i < 4; ++i) {
            out[2 * i] += weight * grid::half_to_float(low_half(words[i]));
            out[2 * i + 1] += weight * grid::half_to_float(high_half(words[i]));
        }
    }
};

template <>
struct Raw<ValueType::q8_0> {
    grid::Words2 a;
    uint16_t d;
    SARDINE_DEVICE void fetch(const Values& v, int64_t p) {
        a = grid::load_once(reinterpret_cast<const grid::Words2*>(v.data + p));
        d = grid::load_once(v.block_scale + p / 32);
    }
    SARDINE_DEVICE void add(float weight, float* out) const {
        const float w = weight * grid::half_to_float(d);
        const uint32_t words[2] = {a.x, a.y};
        SARDINE_UNROLL
        for (int i = 0; i < 8; ++i)
            out[i] += w * static_cast<float>(static_cast<int8_t>(words[i / 4] >> (8 * (i % 4)) & 0xFF));
    }
};

// The same for a type that is known at run time only, and for single values.
SARDINE_DEVICE void add_values(const Values& v, int64_t p, float weight, float* out) {
    if (v.type == ValueType::f32) {
        Raw<ValueType::f32> raw;
        raw.fetch(v, p);
        raw.add(weight, out);
    } else if (v.type == ValueType::f16) {
        Raw<ValueType::f16> raw;
        raw.fetch(v, p);
        raw.add(weight, out);
    } else {
        Raw<ValueType::q8_0> raw;
        raw.fetch(v, p);
        raw.add(weight, out);
    }
}

SARDINE_DEVICE float value_at(const Values& v, int64_t p) {
    if (v.type == ValueType::f32) return reinterpret_cast<const float*>(v.data)[p];
    if (v.type == ValueType::f16) return grid::half_to_float(reinterpret_cast<const uint16_t*>(v.data)[p]);
    return grid::half_to_float(v.block_scale[p / 32]) *
           static_cast<float>(reinterpret_cast<const int8_t*>(v.data)[p]);
}

SARDINE_DEVICE Values of_expert(const Delta& d, int expert) {
    Values v = d.values;
    v.data += expert * d.value_stride;
    if (v.block_scale) v.block_scale += expert * d.block_scale_stride;
    return v;
}

SARDINE_DEVICE int least(int a, int b) {
    return a < b ? a : b;
}
SARDINE_DEVICE int most(int a, int b) {
    return a > b ? a : b;
}

}  // namespace sardine::device
