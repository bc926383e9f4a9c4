// A grid of threads on the CPU: blocks one after the other, the threads of a block as fibers that switch at
// barriers only. What a barrier should order but does not shows as a wrong result under some order of the
// threads, so tests run several; a barrier that not all threads reach, and writes past the shared memory, are
// errors.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>

#include "grid.h"

#define SARDINE_KERNEL
#define SARDINE_DEVICE inline
#define SARDINE_UNROLL
#define SARDINE_BOUNDS(threads)

namespace sardine::grid {

struct Shape {
    int x = 1, y = 1, z = 1;
    int threads = kWarp;  // a multiple of a warp, at most 1024
    size_t shared = 0;    // bytes
};

// The order in which the threads of a block run between two barriers.
enum class Order { forward, backward, random };

// Runs the kernel body once for each thread. Throws Error for a barrier that some threads do not reach and
// for writes past the shared memory.
void emulate(const Shape& shape, const std::function<void()>& body);
// Of the emulations of this thread from now on; `seed` is for the random one.
void set_emulation_order(Order order, uint32_t seed);

// The running thread's place.
struct Place {
    int thread = 0, n_threads = 0;
    int block_x = 0, block_y = 0, block_z = 0, n_blocks_x = 0;
    unsigned char* shared = nullptr;
};
const Place& place();

void sync_block();
void sync_warp();
// The values that the lanes of this warp hand over in the same call, [kWarp].
const uint64_t* exchange(uint64_t mine);

inline int thread() {
    return place().thread;
}
inline int n_threads() {
    return place().n_threads;
}
inline int block_x() {
    return place().block_x;
}
inline int block_y() {
    return place().block_y;
}
inline int block_z() {
    return place().block_z;
}
inline int n_blocks_x() {
    return place().n_blocks_x;
}
inline unsigned char* shared_memory() {
    return place().shared;
}

template <typename T>
T shuffle(T v, int from) {
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    bits = exchange(bits)[from & (kWarp - 1)];
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
template <typename T>
T shuffle_xor(T v, int mask) {
    return shuffle(v, (thread() & (kWarp - 1)) ^ mask);
}
inline uint32_t ballot(bool v) {
    const uint64_t* all = exchange(v);
    uint32_t bits = 0;
    for (int i = 0; i < kWarp; ++i) bits |= static_cast<uint32_t>(all[i] != 0) << i;
    return bits;
}
inline int count_bits(uint32_t v) {
    return std::popcount(v);
}

float half_to_float(uint16_t h);

inline Words4 load_once(const Words4* p) {
    return *p;
}
inline Words2 load_once(const Words2* p) {
    return *p;
}
inline uint16_t load_once(const uint16_t* p) {
    return *p;
}
inline float bits_to_float(uint32_t v) {
    return std::bit_cast<float>(v);
}

}  // namespace sardine::grid
