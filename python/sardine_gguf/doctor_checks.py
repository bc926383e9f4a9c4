"""The checks of sardine-doctor. Each returns findings and raises nothing that it expects."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sardine_gguf import __version__, _native
from sardine_gguf._libs import LLAMA_CPP_VERSION
from sardine_gguf.doctor import Check, ok

_GIB = 1 << 30
# Features that make a difference, as Linux and as ggml name them.
_FEATURES = ("avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vnni", "avx512_bf16")


def versions() -> list[Check]:
    """Of everything that takes part."""
    build = _native.build_info()
    return [
        ok("sardine_gguf", f"{__version__}, built with {build['compiler']}"),
        ok("python", f"{platform.python_version()} ({sys.executable})"),
        ok("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        _llama_cpp(),
        ok("ggml", f"{build['ggml_version']} ({build['ggml_commit']})"),
    ]


def _llama_cpp() -> Check:
    found = metadata.version("llama_cpp_python")
    if found == LLAMA_CPP_VERSION:
        return ok("llama-cpp-python", found)
    return Check(
        "llama-cpp-python",
        "error",
        f"{found}, but this build needs {LLAMA_CPP_VERSION}",
        f"pip install llama-cpp-python=={LLAMA_CPP_VERSION}",
    )


def processor_features(cpuinfo: str) -> tuple[str, set[str]]:
    """Name and features in the text of /proc/cpuinfo; empty where it has none."""
    name, flags = "", set[str]()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not name:
            name = value.strip()
        if key.strip() == "flags" and not flags:
            flags = set(value.split())
    return name, flags


def processor() -> list[Check]:
    """Features, and whether ggml was compiled for what there is."""
    name, flags = processor_features(_read("/proc/cpuinfo"))
    cores = len(os.sched_getaffinity(0))
    have = [f for f in _FEATURES if f in flags]
    checks = [ok("processor", f"{name or platform.machine()}, {cores} usable threads")]
    if not flags:
        return checks
    checks.append(ok("features", " ".join(have) or "none that matter"))
    return [*checks, ggml_features(flags, _native.build_info()["ggml_features"])]


def ggml_features(flags: set[str], compiled: dict[str, bool]) -> Check:
    """What ggml was compiled for, beside what the processor has."""
    used = [f for f, on in compiled.items() if on]
    missing = [f for f in used if f in _FEATURES and f not in flags]
    package = f"llama-cpp-python=={LLAMA_CPP_VERSION}"
    rebuild = (
        f"CMAKE_ARGS=-DGGML_NATIVE=ON pip install --force-reinstall --no-binary :all: {package}"
    )
    if missing:
        finding = f"compiled for {' '.join(missing)}, which this processor does not have"
        return Check("ggml's kernels", "error", finding, rebuild)
    unused = [f for f in ("avx2", "fma", "f16c") if f in flags and not compiled.get(f)]
    if unused:
        finding = f"compiled without {' '.join(unused)}: several times slower than it could be"
        return Check("ggml's kernels", "warning", finding, rebuild)
    return ok("ggml's kernels", f"compiled for {' '.join(used) or 'any processor'}")


def kernels() -> list[Check]:
    """The path of the experts' kernels, and SARDINE_CPU, which may choose another."""
    wanted = os.environ.get("SARDINE_CPU", "")
    paths = _native.kernel_paths()
    try:
        used = _native.kernel_path()
    except ValueError as e:
        return [Check("expert kernels", "error", str(e), "unset SARDINE_CPU")]
    finding = f"{used} (this processor runs: {', '.join(paths)})"
    if wanted and _rank(used) < max(map(_rank, paths)):
        return [
            Check("expert kernels", "warning", finding + " by SARDINE_CPU", "unset SARDINE_CPU")
        ]
    return [ok("expert kernels", finding)]


def _rank(path: str) -> int:
    return ("portable", "neon", "avx2", "avx512", "avx512bf16").index(path)


def devices() -> list[Check]:
    """Where models run: the GPUs that ggml has, and whether our kernels are there for them."""
    return [gpu_support(_native.find_gpus())]


def gpu_support(found: dict[str, Any]) -> Check:
    """The same from what find_gpus() gives."""
    rebuild = "build sardine_gguf with CMAKE_ARGS=-DSARDINE_CUDA=ON (docs/gpu.md)"
    gpus = ", ".join(
        f"{name} ({free / _GIB:.1f} of {total / _GIB:.1f} GiB free)"
        for name, free, total in found["devices"]
    )
    if not found["ggml_has_cuda"]:
        if found["has_kernels"]:
            package = f"llama-cpp-python=={LLAMA_CPP_VERSION}"
            remedy = f"CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-binary :all: {package}"
            finding = (
                "CPU; this package has CUDA kernels, but llama-cpp-python was built without CUDA"
            )
            return Check("devices", "error", finding, remedy)
        return ok("devices", "CPU; built without CUDA (docs/gpu.md), so n_gpu_layers must be 0")
    if not found["has_kernels"]:
        finding = f"CPU; llama-cpp-python has CUDA, but {found['kernels_path']} is missing"
        return Check("devices", "warning", finding, rebuild)
    if found["kernels_error"]:
        return Check("devices", "error", f"CPU; {found['kernels_error']}", rebuild)
    if not gpus:
        finding = "CPU; built for CUDA, but ggml finds no GPU"
        return Check(
            "devices", "warning", finding, "see whether nvidia-smi lists one; update the driver"
        )
    return ok("devices", f"CPU, {gpus}")


def device_list() -> str:
    """The same as llama.cpp's --list-devices prints it."""
    name, _ = processor_features(_read("/proc/cpuinfo"))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _native.available_memory()
    memory = f"{total >> 20} MiB, {free >> 20} MiB free"
    lines = ["Available devices:", f"  CPU: {name or platform.machine()} ({memory})"]
    for gpu, gpu_free, gpu_total in _native.find_gpus()["devices"]:
        lines.append(f"  CUDA: {gpu} ({gpu_total >> 20} MiB, {gpu_free >> 20} MiB free)")
    return "\n".join(lines)


def memory() -> list[Check]:
    """Total, and what can be allocated now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _native.available_memory()
    finding = f"{free / _GIB:.1f} GiB available of {total / _GIB:.1f} GiB"
    if free < _GIB:
        remedy = "close other programs; a context of few tokens (-c 2048) needs less"
        return [Check("memory", "warning", finding, remedy)]
    return [ok("memory", finding)]


def libraries() -> list[Check]:
    """Whether libllama and ggml are in this process once, which two copies' globals would disturb."""
    return [library_copies(_read("/proc/self/maps"))]


def library_copies(maps: str) -> Check:
    """The same from the text of /proc/self/maps."""
    files: dict[str, set[tuple[str, str]]] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            name = Path(fields[5]).name.split(".so")[0]
            if name in ("libllama", "libggml", "libggml-base", "libggml-cpu"):
                files.setdefault(name, set()).add((fields[3] + ":" + fields[4], fields[5]))
    twice = sorted(n for n, found in files.items() if len(found) > 1)
    if twice:
        where = ", ".join(sorted(path for n in twice for _, path in files[n]))
        remedy = (
            "import sardine_gguf before other packages, and unset LD_LIBRARY_PATH and LD_PRELOAD"
        )
        return Check("libraries", "error", f"loaded more than once: {where}", remedy)
    if "libllama" not in files:
        return Check("libraries", "error", "libllama is not loaded", "reinstall llama-cpp-python")
    (path,) = {Path(p).parent for _, p in files["libllama"]}
    return ok("libraries", f"one copy of {', '.join(sorted(files))}, in {path}")


def limits() -> list[Check]:
    """Limits of the process that loading a model meets."""
    checks = []
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 256:
        checks.append(Check("open files", "warning", f"at most {files}", "ulimit -n 1024"))
    else:
        checks.append(ok("open files", "any number" if files < 0 else f"at most {files}"))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space == resource.RLIM_INFINITY:
        checks.append(ok("address space", "no limit; models are mapped, not copied"))
    else:
        finding = f"limited to {space / _GIB:.1f} GiB, and a model's file is mapped into it"
        checks.append(Check("address space", "warning", finding, "ulimit -v unlimited"))
    maps = _read("/proc/sys/vm/max_map_count").strip()
    if maps.isdigit() and int(maps) < 4096:
        remedy = "sysctl -w vm.max_map_count=65530"
        checks.append(Check("mappings", "warning", f"at most {maps}", remedy))
    elif maps.isdigit():
        checks.append(ok("mappings", f"at most {maps}"))
    return checks


def self_test() -> list[Check]:
    """Every kernel path on a small matrix, against a sum in float64."""
    g = np.random.default_rng(0)
    n_rows, n_cols, n_experts, n_tokens = 24, 96, 3, 5
    counts = g.integers(0, 12, n_rows)
    columns = [np.sort(g.choice(n_cols, n, replace=False)) for n in counts]
    values = g.standard_normal((n_experts, counts.sum())).astype(np.float32)
    x = g.standard_normal((n_tokens, n_cols)).astype(np.float32)
    expected, size = _expected(columns, values, x, (0.75, 0.25))
    checks = []
    for path in _native.kernel_paths():
        found = _native.sparse_delta(
            path,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            np.concatenate(columns).astype(np.uint16),
            values.view(np.uint8).reshape(-1),
            "f32",
            np.ones(n_experts, np.float32),
            n_rows=n_rows,
            n_cols=n_cols,
            block_columns=n_cols,
            routes=np.tile(np.array([0.75, 0.25, 2, 0], np.float32), (n_tokens, 1)),
            x=x,
        )
        # n positions and 2 experts: (n + 2 + 4) roundings of the terms' absolute sum, and half as much again.
        error = float((abs(found - expected) / size).max())
        limit = float(2 * (counts.max() + 6) * 2.0**-24)
        name = f"self-test {path}"
        if error <= limit:
            checks.append(ok(name, f"relative error {error:.1e}, at most {limit:.1e} allowed"))
        else:
            finding = f"relative error {error:.1e}, more than {limit:.1e}: its results are wrong"
            remedy = "choose another path, e.g. SARDINE_CPU=portable, and report this"
            checks.append(Check(name, "error", finding, remedy))
    return checks


def _expected(
    columns: list[NDArray[np.int64]],
    values: NDArray[np.float32],
    x: NDArray[np.float32],
    weights: tuple[float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums [n_tokens, n_rows] in float64 for experts 2 and 0, and of the terms' absolute values."""
    terms = np.stack([weights[0] * values[2], weights[1] * values[0]]).astype(np.float64)
    ends = np.cumsum([len(c) for c in columns])[:-1]
    xs = x.astype(np.float64)

    def sums(v: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(v, ends)
        return np.array([[p @ row[c] for p, c in zip(parts, columns, strict=True)] for row in rows])

    return sums(terms.sum(axis=0), xs), sums(abs(terms).sum(axis=0), abs(xs)) + 1e-30


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    versions,
    processor,
    kernels,
    devices,
    memory,
    libraries,
    limits,
    self_test,
)
