// Limits of this machine, for roofline.py, and the hash of a saved state, for made_up_state.py. machine.py
// compiles it for the processor that runs it and checks what the loops return.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../cpp/src/hash.h"

namespace {

#if defined(__AVX512F__)
constexpr size_t kVector = 64;
#elif defined(__AVX__)
constexpr size_t kVector = 32;
#else
constexpr size_t kVector = 16;
#endif
typedef uint64_t Words __attribute__((vector_size(kVector)));
typedef float Floats __attribute__((vector_size(kVector)));

// Seconds from when all threads are ready to when the last is done.
double timed(int n_threads, const std::function<void(int)>& work) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < n_threads; ++i)
        threads.emplace_back([&, i] {
            ++ready;
            while (!go) {
            }
            work(i);
        });
    while (ready < n_threads) std::this_thread::yield();
    const auto begin = std::chrono::steady_clock::now();
    go = true;
    for (std::thread& t : threads) t.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The sum of n words at `data`, read in `kStreams` places at once; n is a multiple of 4 * kStreams vectors.
template <int kStreams>
uint64_t sum(const uint64_t* data, size_t n) {
    constexpr size_t kLanes = kVector / sizeof(uint64_t), kUnroll = 4;
    const size_t part = n / kStreams;
    Words acc[kStreams][kUnroll] = {};
    for (size_t i = 0; i < part; i += kLanes * kUnroll)
        for (int s = 0; s < kStreams; ++s)
            for (size_t u = 0; u < kUnroll; ++u)
                acc[s][u] += *reinterpret_cast<const Words*>(data + s * part + i + u * kLanes);
    uint64_t total = 0;
    for (auto& stream : acc)
        for (Words& w : stream)
            for (size_t l = 0; l < kLanes; ++l) total += w[l];
    return total;
}

}  // namespace

extern "C" {

// Seconds to read n words `repeats` times, each thread its own share. total: the sum of all that was read,
// modulo 2^64. n is a multiple of 256 * n_threads, data aligned to 64 bytes.
double read_words(const uint64_t* data, size_t n, int n_threads, int n_streams, int repeats,
                  uint64_t* total) {
    std::vector<uint64_t> sums(8 * static_cast<size_t>(n_threads));  // a cache line each
    const size_t share = n / n_threads;
    const double seconds = timed(n_threads, [&](int i) {
        const uint64_t* mine = data + i * share;
        uint64_t found = 0;
        for (int r = 0; r < repeats; ++r) {
            found += n_streams == 1   ? sum<1>(mine, share)
                     : n_streams == 2 ? sum<2>(mine, share)
                                      : sum<4>(mine, share);
            asm volatile("" ::: "memory");
        }
        sums[8 * i] = found;
    });
    *total = 0;
    for (const uint64_t s : sums) *total += s;
    return seconds;
}

// Seconds of `steps` steps of multiply_adds_per_step() multiply-adds in float32 on each thread; total: the
// sum of all lanes, each of which gains `one` a step if `one` is 1.
double multiply_add(int n_threads, int64_t steps, float one, double* total) {
    constexpr int kAccumulators = 12;
    std::vector<double> sums(8 * static_cast<size_t>(n_threads));
    const double seconds = timed(n_threads, [&](int i) {
        Floats acc[kAccumulators] = {};
        const Floats by = Floats{} + one;
        for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 12
            for (Floats& a : acc) a = a * by + by;
        for (Floats& a : acc)
            for (size_t l = 0; l < kVector / sizeof(float); ++l) sums[8 * i] += static_cast<double>(a[l]);
    });
    *total = 0;
    for (const double s : sums) *total += s;
    return seconds;
}

int64_t multiply_adds_per_step() {
    return 12 * static_cast<int64_t>(kVector / sizeof(float));
}

// The same with products of bytes summed in 32 bits; 0 multiply-adds a step where there is no such loop.
double byte_dot(int n_threads, int64_t steps, double* total) {
    std::vector<double> sums(8 * static_cast<size_t>(n_threads));
    double seconds = 0;
    *total = 0;
#if defined(__AVX512VNNI__)
    seconds = timed(n_threads, [&](int i) {
        __m512i acc[12] = {};
        __m512i a = _mm512_set1_epi8(1), b = a;
        for (int64_t s = 0; s < steps; ++s) {
            asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
            for (__m512i& v : acc) v = _mm512_dpbusd_epi32(v, a, b);
        }
        for (__m512i& v : acc) sums[8 * i] += static_cast<double>(_mm512_reduce_add_epi32(v));
    });
#elif defined(__AVX2__)
    seconds = timed(n_threads, [&](int i) {
        __m256i acc[4] = {};  // more would not stay in registers
        __m256i a = _mm256_set1_epi8(1);
        const __m256i b = a, ones = _mm256_set1_epi16(1);
        for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 4
            for (__m256i& v : acc) {
                asm volatile("" : "+x"(a));  // each product is made anew
                v = _mm256_add_epi32(v, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
            }
        for (__m256i& v : acc) {
            alignas(32) int32_t lanes[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
            for (const int32_t l : lanes) sums[8 * i] += l;
        }
    });
#else
    (void)steps;
#endif
    for (const double s : sums) *total += s;
    return seconds;
}

int64_t byte_products_per_step() {
#if defined(__AVX512VNNI__)
    return 12 * 64;
#elif defined(__AVX2__)
    return 4 * 32;
#else
    return 0;
#endif
}

uint64_t state_hash(const uint8_t* data, size_t n) {
    sardine::Hash64 hash;
    hash.add({data, n});
    return hash.value();
}
}
