// For LD_PRELOAD: counts what is asked of malloc and its like, whether it is freed again or not. glibc only.
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include <atomic>

namespace {
std::atomic<uint64_t> calls{0}, bytes{0};

void count(size_t n) {
    calls.fetch_add(1, std::memory_order_relaxed);
    bytes.fetch_add(n, std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) {
    count(n);
    return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
    count(n * size);
    return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
    count(n);
    return __libc_realloc(p, n);
}
void* memalign(size_t alignment, size_t n) {
    count(n);
    return __libc_memalign(alignment, n);
}
void* aligned_alloc(size_t alignment, size_t n) {
    return memalign(alignment, n);
}
int posix_memalign(void** out, size_t alignment, size_t n) {
    void* p = memalign(alignment, n);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}

uint64_t counted_calls() {
    return calls.load();
}
uint64_t counted_bytes() {
    return bytes.load();
}
}
