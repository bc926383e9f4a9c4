#include "kernels/cpu_ops.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "sardine/error.h"

namespace sardine {
namespace {

// Runnable tables, best first.
std::vector<const CpuOps*> runnable() {
    std::vector<const CpuOps*> out;
#ifdef SARDINE_X86
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512bf16")) out.push_back(&kCpuOpsAvx512Bf16);
        out.push_back(&kCpuOpsAvx512);
    }
    if (avx2) out.push_back(&kCpuOpsAvx2);
#endif
#ifdef SARDINE_NEON
    out.push_back(&kCpuOpsNeon);
#endif
    out.push_back(&kCpuOpsPortable);
    return out;
}

}  // namespace

const CpuOps* find_cpu_ops(const char* name) {
    for (const CpuOps* ops : runnable())
        if (std::strcmp(ops->name, name) == 0) return ops;
    return nullptr;
}

const CpuOps& cpu_ops() {
    static const CpuOps& chosen = []() -> const CpuOps& {
        const char* wanted = std::getenv("SARDINE_CPU");
        if (!wanted || !*wanted) return *runnable().front();
        const CpuOps* ops = find_cpu_ops(wanted);
        if (!ops)
            throw InvalidArgument(
                "SARDINE_CPU is '" + std::string(wanted) +
                "', expected portable, avx2, avx512, avx512bf16 or neon as far as this processor has them");
        return *ops;
    }();
    return chosen;
}

}  // namespace sardine
