// NEON, which every AArch64 processor has; none of its extensions.
#include <arm_neon.h>

#include <cstring>

#include "kernels/attention_impl.h"
#include "kernels/cpu_ops.h"
#include "kernels/q8_block.h"

namespace sardine {
namespace {

float32x4_t widen4(const uint8_t* half) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(half)));
}

float widen(uint16_t half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}

// Values 8 * part to 8 * part + 7 of a block.
void widen8(const int8_t* q, float32x4_t& low, float32x4_t& high) {
    const int16x8_t wide = vmovl_s8(vld1_s8(q));
    low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
}

void store(float* out, float32x4_t v, bool accumulate) {
    vst1q_f32(out, accumulate ? vaddq_f32(vld1q_f32(out), v) : v);
}

void add_values(ValueType type, const uint8_t* val, int64_t begin, int64_t n, float weight, bool accumulate,
                float* out) {
    if (type == ValueType::q8_0) {
        const auto* block = reinterpret_cast<const Q8Block*>(val) + begin / kQ8Block;
        for (int64_t i = 0; i < n; i += kQ8Block, ++block, out += kQ8Block) {
            const float d = weight * widen(block->d);
            for (int part = 0; part < 4; ++part) {
                float32x4_t low, high;
                widen8(block->q + 8 * part, low, high);
                store(out + 8 * part, vmulq_n_f32(low, d), accumulate);
                store(out + 8 * part + 4, vmulq_n_f32(high, d), accumulate);
            }
        }
        return;
    }
    const bool wide = type == ValueType::f32;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t v =
            wide ? vreinterpretq_f32_u8(vld1q_u8(val + 4 * (begin + i))) : widen4(val + 2 * (begin + i));
        store(out + i, vmulq_n_f32(v, weight), accumulate);
    }
    for (; i < n; ++i) {
        float v;
        if (wide) {
            std::memcpy(&v, val + 4 * (begin + i), sizeof v);
        } else {
            uint16_t half;
            std::memcpy(&half, val + 2 * (begin + i), sizeof half);
            v = widen(half);
        }
        out[i] = accumulate ? out[i] + weight * v : weight * v;
    }
}

// out[i] = mixed[begin + i] for i in [0, n); begin is a multiple of 32.
void mix_blocks(const WeightedValues* parts, int64_t n_parts, int64_t begin, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += kQ8Block) {
        float32x4_t sum[8];
        for (auto& s : sum) s = vdupq_n_f32(0.0f);
        for (int64_t j = 0; j < n_parts; ++j) {
            const auto* block = reinterpret_cast<const Q8Block*>(parts[j].data) + (begin + i) / kQ8Block;
            const float d = parts[j].weight * widen(block->d);
            for (int h = 0; h < 4; ++h) {
                float32x4_t low, high;
                widen8(block->q + 8 * h, low, high);
                sum[2 * h] = vfmaq_n_f32(sum[2 * h], low, d);
                sum[2 * h + 1] = vfmaq_n_f32(sum[2 * h + 1], high, d);
            }
        }
        for (int h = 0; h < 8; ++h) vst1q_f32(out + i + 4 * h, sum[h]);
    }
}

void multiply(const uint16_t* col, int64_t lead, int64_t n, const float* x, float* out) {
    int64_t i = lead;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_dup_f32(x + col[i]);
        v = vld1q_lane_f32(x + col[i + 1], v, 1);
        v = vld1q_lane_f32(x + col[i + 2], v, 2);
        v = vld1q_lane_f32(x + col[i + 3], v, 3);
        vst1q_f32(out + i, vmulq_f32(vld1q_f32(out + i), v));
    }
    for (; i < n; ++i) out[i] *= x[col[i]];
}

float sum_of(const float* v, int64_t n) {
    float32x4_t s[4];
    for (auto& a : s) a = vdupq_n_f32(0.0f);
    for (; n >= 16; n -= 16, v += 16)
        for (int h = 0; h < 4; ++h) s[h] = vaddq_f32(s[h], vld1q_f32(v + 4 * h));
    for (; n >= 4; n -= 4, v += 4) s[0] = vaddq_f32(s[0], vld1q_f32(v));
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s[0], s[1]), vaddq_f32(s[2], s[3])));
    for (; n > 0; --n, ++v) sum += *v;
    return sum;
}

void rows_dot(const int32_t* row_ptr, int64_t n_rows, const uint16_t* col, const WeightedValues* parts,
              int64_t n_parts, const float* x, float* y, float* scratch) {
    const int64_t begin = row_ptr[0] / kQ8Block * kQ8Block;
    const int64_t n = row_ptr[n_rows] - begin;
    bool blocks = true;
    for (int64_t j = 0; j < n_parts; ++j) blocks &= parts[j].type == ValueType::q8_0;
    if (blocks)
        mix_blocks(parts, n_parts, begin, n, scratch);
    else
        for (int64_t j = 0; j < n_parts; ++j)
            add_values(parts[j].type, parts[j].data, begin, n, parts[j].weight, j > 0, scratch);
    multiply(col + begin, row_ptr[0] - begin, n, x, scratch);
    for (int64_t r = 0; r < n_rows; ++r)
        y[r] += sum_of(scratch + (row_ptr[r] - begin), row_ptr[r + 1] - row_ptr[r]);
}

struct Lanes {
    static constexpr int64_t kLanes = 4;
    static constexpr int kRegisters = 32;
    using Reg = float32x4_t;
    static Reg set1(float x) { return vdupq_n_f32(x); }
    static Reg zero() { return vdupq_n_f32(0.0f); }
    static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
    static float sum(Reg a) { return vaddvq_f32(a); }
    static Reg load(const float* p, int64_t n) {
        if (n == kLanes) return vld1q_f32(p);
        float part[kLanes] = {};
        std::memcpy(part, p, n * sizeof(float));
        return vld1q_f32(part);
    }
    static void store(float* p, int64_t n, Reg r) {
        if (n == kLanes) {
            vst1q_f32(p, r);
            return;
        }
        float part[kLanes];
        vst1q_f32(part, r);
        std::memcpy(p, part, n * sizeof(float));
    }
    static Reg load_kv(KvType type, const uint8_t* row, int64_t first, int64_t n) {
        if (type == KvType::f32) return load(reinterpret_cast<const float*>(row) + first, n);
        if (type == KvType::q8_0) {
            const auto& block = reinterpret_cast<const Q8Block*>(row)[first / kQ8Block];
            int32_t four;
            std::memcpy(&four, block.q + first % kQ8Block, sizeof four);
            const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
            return vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), widen(block.d));
        }
        if (n == kLanes) return widen4(row + 2 * first);
        uint8_t part[2 * kLanes] = {};
        std::memcpy(part, row + 2 * first, 2 * n);
        return widen4(part);
    }
};

}  // namespace

const CpuOps kCpuOpsNeon = {"neon",
                            add_values,
                            rows_dot,
                            &kTileNeon,
                            &kTileNeonBf16,
                            spread_tile_neon,
                            attention_scores_impl<Lanes>,
                            attention_exp_impl<Lanes>,
                            attention_weigh_impl<Lanes>};

}  // namespace sardine
