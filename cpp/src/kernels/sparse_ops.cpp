#include "kernels/sparse_ops.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "sardine/error.h"

namespace sardine {
namespace {

// Runnable tables, best first.
std::vector<const SparseOps*> runnable() {
    std::vector<const SparseOps*> out;
#ifdef SARDINE_X86
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        out.push_back(&kSparseOpsAvx512);
    if (avx2) out.push_back(&kSparseOpsAvx2);
#endif
    out.push_back(&kSparseOpsPortable);
    return out;
}

}  // namespace

const SparseOps* find_sparse_ops(const char* name) {
    for (const SparseOps* ops : runnable())
        if (std::strcmp(ops->name, name) == 0) return ops;
    return nullptr;
}

const SparseOps& sparse_ops() {
    static const SparseOps& chosen = []() -> const SparseOps& {
        const char* wanted = std::getenv("SARDINE_CPU");
        if (!wanted || !*wanted) return *runnable().front();
        const SparseOps* ops = find_sparse_ops(wanted);
        if (!ops)
            throw InvalidArgument("SARDINE_CPU is '" + std::string(wanted) +
                                  "', expected portable, avx2 or avx512 as far as this processor has them");
        return *ops;
    }();
    return chosen;
}

}  // namespace sardine
