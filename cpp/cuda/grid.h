// What a kernel may use of its thread grid: CUDA's own, or an emulation of it on the CPU (emulation.h).
// Kernels are written once against these names. Every thread of a warp takes part in every warp operation.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

namespace sardine::grid {

constexpr int kWarp = 32;

struct alignas(8) Words2 {
    uint32_t x, y;
};
struct alignas(16) Words4 {
    uint32_t x, y, z, w;
};

}  // namespace sardine::grid

#ifdef __CUDACC__

#include <cuda_fp16.h>

#define SARDINE_KERNEL __global__
#define SARDINE_DEVICE __device__ __forceinline__
#define SARDINE_UNROLL _Pragma("unroll")
// __launch_bounds__ with at least one block on each multiprocessor
#define SARDINE_BOUNDS(threads) __launch_bounds__(threads, 1)

namespace sardine::grid {

SARDINE_DEVICE int thread() {
    return static_cast<int>(threadIdx.x);
}
SARDINE_DEVICE int n_threads() {
    return static_cast<int>(blockDim.x);
}
SARDINE_DEVICE int block_x() {
    return static_cast<int>(blockIdx.x);
}
SARDINE_DEVICE int block_y() {
    return static_cast<int>(blockIdx.y);
}
SARDINE_DEVICE int block_z() {
    return static_cast<int>(blockIdx.z);
}
SARDINE_DEVICE int n_blocks_x() {
    return static_cast<int>(gridDim.x);
}

SARDINE_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char sardine_shared[];
    return sardine_shared;
}

SARDINE_DEVICE void sync_block() {
    __syncthreads();
}
SARDINE_DEVICE void sync_warp() {
    __syncwarp();
}

// v of lane `from`, and of the lane whose number differs in the bits of `mask`.
template <typename T>
SARDINE_DEVICE T shuffle(T v, int from) {
    return __shfl_sync(0xFFFFFFFFu, v, from);
}
template <typename T>
SARDINE_DEVICE T shuffle_xor(T v, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, v, mask);
}
SARDINE_DEVICE uint32_t ballot(bool v) {
    return __ballot_sync(0xFFFFFFFFu, v);
}
SARDINE_DEVICE int count_bits(uint32_t v) {
    return __popc(v);
}

SARDINE_DEVICE float half_to_float(uint16_t h) {
    return __half2float(__ushort_as_half(h));
}

// Reads what this launch uses once, and leaves the caches to others.
SARDINE_DEVICE Words4 load_once(const Words4* p) {
    const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p));
    return {v.x, v.y, v.z, v.w};
}
SARDINE_DEVICE Words2 load_once(const Words2* p) {
    const uint2 v = __ldcs(reinterpret_cast<const uint2*>(p));
    return {v.x, v.y};
}
SARDINE_DEVICE uint16_t load_once(const uint16_t* p) {
    return __ldcs(p);
}

SARDINE_DEVICE float bits_to_float(uint32_t v) {
    return __uint_as_float(v);
}

}  // namespace sardine::grid

#else

#include "emulation.h"

#endif
