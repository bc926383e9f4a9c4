"""What this machine can do at most: reading, multiply-adds, products of bytes, ggml's own products.

The loops are in machine.cpp, compiled with g++ (or $CXX) for this processor when they are first used; what
they return is compared with what it must be. ggml's products run in the library that sardine_gguf uses.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sardine_gguf import _libs, _native

_SOURCE = Path(__file__).with_suffix(".cpp")
_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k",
          11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 20: "iq4_nl", 23: "iq4_xs", 30: "bf16"}  # fmt: skip


def compile_library(source: Path, out: Path) -> Path:
    """A shared library of one C++ file, for this processor.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-O3", "-march=native", "-std=c++20"]
    command += ["-shared", "-fPIC", "-pthread", str(source), "-o", str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} is missing: install it or set CXX") from None
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return out


@functools.cache
def loops() -> ctypes.CDLL:
    """machine.cpp, compiled.

    Raises:
        RuntimeError: it cannot be compiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        lib = ctypes.CDLL(str(compile_library(_SOURCE, Path(folder) / "machine.so")))
    for name, result, arguments in (
        ("read_words", ctypes.c_double, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                                         ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)]),
        ("multiply_add", ctypes.c_double, [ctypes.c_int, ctypes.c_int64, ctypes.c_float,
                                           ctypes.POINTER(ctypes.c_double)]),
        ("multiply_adds_per_step", ctypes.c_int64, []),
        ("byte_dot", ctypes.c_double, [ctypes.c_int, ctypes.c_int64, ctypes.POINTER(ctypes.c_double)]),
        ("byte_products_per_step", ctypes.c_int64, []),
        ("state_hash", ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t]),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def state_hash(data: NDArray[np.uint8]) -> int:
    """The checksum of a saved state."""
    return int(loops().state_hash(data.ctypes.data, data.nbytes))


@functools.lru_cache(1)  # filling it takes longer than reading it
def _words(nbytes: int, n_threads: int) -> NDArray[np.uint64]:
    """0, 1, 2, ... aligned to a cache line; a whole number of vectors for each thread."""
    n = max(1, nbytes // 8 // (256 * n_threads)) * 256 * n_threads
    raw = np.empty(n + 8, np.uint64)
    data = raw[(-raw.ctypes.data // 8) % 8 :][:n]
    data[:] = np.arange(n, dtype=np.uint64)
    return data


def read_rate(nbytes: int, n_threads: int, seconds: float) -> float:
    """Bytes a second, the best of rounds that take `seconds` in all, over 1, 2 and 4 streams a thread.

    Raises:
        RuntimeError: a sum is wrong.
    """
    data = _words(nbytes, n_threads)
    n = len(data)
    repeats = max(1, (1 << 28) // data.nbytes)  # threads start in some 50 us
    expected = n * (n - 1) // 2 * repeats % (1 << 64)
    total = ctypes.c_uint64()
    best, end = 0.0, time.monotonic() + seconds
    while True:
        for streams in (1, 2, 4):
            took = loops().read_words(
                data.ctypes.data, n, n_threads, streams, repeats, ctypes.byref(total)
            )
            if total.value != expected:
                raise RuntimeError(f"the sum is {total.value}, expected {expected}")
            best = max(best, data.nbytes * repeats / took)
        if time.monotonic() >= end:
            return best


def _best(run: Callable[[], float], seconds: float) -> float:
    best, end = run(), time.monotonic() + seconds
    while time.monotonic() < end:
        best = max(best, run())
    return best


def float_rate(n_threads: int, seconds: float) -> float:
    """Multiply-adds in float32 a second, the best of rounds.

    Raises:
        RuntimeError: a result is wrong.
    """
    steps, total = 1 << 24, ctypes.c_double()  # as far as sums of ones are exact
    per_step = int(loops().multiply_adds_per_step())

    def run() -> float:
        took = loops().multiply_add(n_threads, steps, 1.0, ctypes.byref(total))
        if total.value != float(steps) * per_step * n_threads:
            raise RuntimeError(f"the sum is {total.value}")
        return float(per_step * steps * n_threads / took)

    return _best(run, seconds)


def byte_rate(n_threads: int, seconds: float) -> float | None:
    """Multiply-adds of bytes a second; None where machine.cpp has no loop for this processor.

    Raises:
        RuntimeError: a result is wrong.
    """
    steps, total = 1 << 24, ctypes.c_double()
    per_step = int(loops().byte_products_per_step())
    if not per_step:
        return None

    def run() -> float:
        took = loops().byte_dot(n_threads, steps, ctypes.byref(total))
        if total.value != float(steps) * per_step * n_threads:
            raise RuntimeError(f"the sum is {total.value}")
        return float(per_step * steps * n_threads / took)

    return _best(run, seconds)


class _InitParams(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@functools.cache
def _ggml() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    folder = _libs._library_dir()
    base, cpu = (ctypes.CDLL(str(folder / f"lib{n}.so")) for n in ("ggml-base", "ggml-cpu"))
    p, i64 = ctypes.c_void_p, ctypes.c_int64
    for lib, name, result, arguments in (
        (base, "ggml_init", p, [_InitParams]),
        (base, "ggml_free", None, [p]),
        (base, "ggml_new_tensor_2d", p, [p, ctypes.c_int, i64, i64]),
        (base, "ggml_mul_mat", p, [p, p, p]),
        (base, "ggml_new_graph", p, [p]),
        (base, "ggml_build_forward_expand", None, [p, p]),
        (base, "ggml_get_data", p, [p]),
        (cpu, "ggml_cpu_init", None, []),
        (cpu, "ggml_graph_compute_with_ctx", ctypes.c_int, [p, p, ctypes.c_int]),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    cpu.ggml_cpu_init()
    return base, cpu


def product_rate(kind: int, n_tokens: int, n_threads: int, seconds: float) -> float:
    """Multiply-adds a second of ggml's product of a weight matrix that stays in the caches.

    A matrix of 1024 rows and 4096 columns (2.4 MB with q4_k), the same in every node of a graph; quantizing
    the activations is part of it, as it is in a model.

    Args:
        kind: ggml's number of the weights' type.
        n_tokens: columns of the activations.

    Raises:
        RuntimeError: ggml fails, or its results are not those of the matrix.
        ValueError: no such type.
    """
    if kind not in _TYPES:
        raise ValueError(f"type {kind} is none that benchmarks know")
    base, cpu = _ggml()
    columns, rows = 4096, 1024
    nodes = max(1, min(64, round(2e9 / (columns * rows * n_tokens))))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, columns), np.float32)
    x = rng.standard_normal((n_tokens, columns), np.float32)
    name = _TYPES[kind]
    data = weights if name == "f32" else _native.quantize(weights, name, n_threads)
    data = np.ascontiguousarray(data)
    runs = 16  # each leaves its work buffer in the context
    size = data.nbytes + runs * 2 * x.nbytes + nodes * 4 * rows * n_tokens + (64 << 20)
    context = base.ggml_init(_InitParams(size, None, False))
    if not context:
        raise RuntimeError("ggml_init failed")
    try:
        w = base.ggml_new_tensor_2d(context, kind, columns, rows)
        b = base.ggml_new_tensor_2d(context, 0, columns, n_tokens)
        ctypes.memmove(base.ggml_get_data(w), data.ctypes.data, data.nbytes)
        ctypes.memmove(base.ggml_get_data(b), x.ctypes.data, x.nbytes)
        graph = base.ggml_new_graph(context)
        last = None
        for _ in range(nodes):
            last = base.ggml_mul_mat(context, w, b)
            base.ggml_build_forward_expand(graph, last)
        best, end = 0.0, time.monotonic() + seconds
        for i in range(runs):
            start = time.perf_counter()
            if cpu.ggml_graph_compute_with_ctx(context, graph, n_threads):
                raise RuntimeError("ggml fails to compute")
            took = time.perf_counter() - start
            best = max(best, nodes * columns * rows * n_tokens / took)
            if i and time.monotonic() >= end:
                break
        found = np.ctypeslib.as_array(
            (ctypes.c_float * (rows * n_tokens)).from_address(base.ggml_get_data(last))
        ).reshape(n_tokens, rows)
        expected = x @ weights.T
        error = float(((found - expected) ** 2).mean() / (expected**2).mean())
        if not error < 0.2:  # 2-bit types lose that much
            raise RuntimeError(f"{name}: ggml's product is off by {error:.3g} (NMSE)")
        return best
    finally:
        base.ggml_free(context)


def cache_bytes() -> list[int]:
    """Sizes of the first processor's data caches, the first level first; empty where unknown."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        text = {n: (index / n).read_text().strip() for n in ("type", "level", "size")}
        if text["type"] != "Instruction":
            unit = {"K": 1 << 10, "M": 1 << 20}.get(text["size"][-1:], 1)
            sizes[int(text["level"])] = int(text["size"].rstrip("KM")) * unit
    return [sizes[level] for level in sorted(sizes)]


@dataclass(frozen=True)
class Limits:
    """Rates a second, with n_threads threads.

    Attributes:
        memory, cache: bytes read; cache is of the last level, None where its size is unknown.
        memory_size, cache_size: bytes of what was read for them.
        floats, bytes_: multiply-adds of float32, and of bytes (None where not measured).
        products: multiply-adds of ggml's products by (type, tokens at a time).
    """

    n_threads: int
    memory: float
    memory_size: int
    cache: float | None
    cache_size: int
    floats: float
    bytes_: float | None
    products: dict[tuple[int, int], float]


def limits(
    n_threads: int,
    kinds: set[int],
    batches: set[int],
    gib: float,
    seconds: float,
    progress: Callable[[str], None],
) -> Limits:
    """Measures them, each for about `seconds`.

    Args:
        kinds: types of weights.
        batches: tokens at a time.
        gib: what is read from memory.
    """
    progress(f"limits: reading {gib:g} GiB of memory")
    size = int(gib * (1 << 30))
    memory = read_rate(size, n_threads, seconds)
    caches = cache_bytes()
    in_cache = max(caches) // 2 if caches else 0
    progress("limits: reading the last cache")
    cache = read_rate(in_cache, n_threads, seconds) if in_cache else None
    progress("limits: multiply-adds")
    floats, dots = float_rate(n_threads, seconds), byte_rate(n_threads, seconds)
    products = {}
    for kind in sorted(kinds):
        for n in sorted(batches):
            progress(f"limits: ggml's product of {_TYPES.get(kind, kind)}, {n} tokens")
            products[kind, n] = product_rate(kind, n, n_threads, seconds)
    return Limits(n_threads, memory, size, cache, in_cache, floats, dots, products)


def type_name(kind: int) -> str:
    """Of a tensor's type, by ggml's number."""
    return _TYPES.get(kind, f"type {kind}")
