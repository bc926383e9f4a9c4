"""The delta kernels against scipy's CSR, torch's CSR and a plain loop, on the same experts, in turns.

    python benchmarks/kernels.py base.gguf experts.gguf [--tokens 1] [--layers 40] [-r 5] [-t 2]

One token (or more) through every delta of two experts. scipy and torch get each expert's matrices in
float32 with 32-bit indices, and multiply twice; the plain loop is the kernel table "portable".
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from sardine_gguf import _native
from sardine_gguf.convert.schema import MATRICES, delta, matrix_shape
from sardine_gguf.program import run_program


def matrices(path: str, layers: int, experts: int) -> list[scipy.sparse.csr_matrix]:
    """Every delta of the first experts, as CSR in float32."""
    file = _native.GgufFile(path)
    tensors = {t.name: t for t in file.tensors}
    data = np.memmap(path, np.uint8, "r")
    hidden, inner = (
        int(file.get(f"sardine.base.{k}")) for k in ("embedding_length", "feed_forward_length")
    )
    block = int(file.get("sardine.block_columns"))

    def array(name: str, kind: str) -> np.ndarray:
        t = tensors[name]
        return data[t.offset : t.offset + t.nbytes].view(kind)

    out = []
    for layer in range(layers):
        for m in MATRICES:
            rows, cols = matrix_shape(m, hidden, inner)
            ptr = array(delta(layer, m, "row_ptr"), "<i4")
            col = array(delta(layer, m, "col"), "<u2").astype(np.int32)
            row = np.repeat(np.arange(len(ptr) - 1, dtype=np.int32), np.diff(ptr))
            col += row // rows * block
            blocks = array(delta(layer, m, "val"), "u1").reshape(
                tensors[delta(layer, m, "val")].shape[1], -1
            )
            for e in range(experts):
                q = blocks[e].view(np.dtype([("d", "<f2"), ("q", "i1", 32)]))
                v = (q["d"].astype(np.float32)[:, None] * q["q"]).reshape(-1)[: len(col)]
                matrix = scipy.sparse.csr_matrix((v, (row % rows, col)), shape=(rows, cols))
                matrix.sort_indices()
                out.append(matrix)
    return out


def run(a: argparse.Namespace) -> int:
    """Prints milliseconds of each, and the ratios to the best kernel."""
    torch.set_num_threads(a.t)
    model = _native.Model(a.base.encode(), adapter=a.adapter.encode())
    found = matrices(a.adapter, a.layers, 2)
    as_torch = [
        torch.sparse_csr_tensor(
            torch.from_numpy(m.indptr.astype(np.int32)),
            torch.from_numpy(m.indices.astype(np.int32)),
            torch.from_numpy(m.data),
            m.shape,
        )
        for m in found
    ]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((max(m.shape[1] for m in found), a.tokens)).astype(np.float32)
    xs = {m.shape[1]: np.ascontiguousarray(x[: m.shape[1]]) for m in found}
    if a.tokens == 1:  # both libraries have a product with a vector
        xs = {n: v[:, 0].copy() for n, v in xs.items()}
    ts = {n: torch.from_numpy(v) for n, v in xs.items()}
    scale = model.hparams["n_layer"] / a.layers

    def clock(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * scale

    runs: dict[str, Callable[[], float]] = {
        path: lambda path=path: _native.time_deltas(  # type: ignore[misc]
            model, path, n_tokens=a.tokens, k=2, n_threads=a.t, repetitions=5
        )[-1]
        for path in _native.kernel_paths()
    }
    runs["torch CSR"] = lambda: clock(lambda: [m @ ts[m.shape[1]] for m in as_torch])
    runs["scipy CSR, 1 thread"] = lambda: clock(lambda: [m @ xs[m.shape[1]] for m in found])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(a.r):
        for name, run in runs.items():
            seconds[name].append(run())
    best = min(statistics.median(s) for s in seconds.values())
    for name, s in seconds.items():
        print(
            f"{name:20} {1e3 * statistics.median(s):8.1f} ms  {statistics.median(s) / best:5.1f}x"
        )
    return 0


def main() -> int:
    """The exit code."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("base")
    p.add_argument("adapter")
    p.add_argument("--tokens", type=int, default=1)
    p.add_argument(
        "--layers", type=int, default=40, help="of scipy's and torch's; scaled to all (40)"
    )
    p.add_argument("-r", type=int, default=5)
    p.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    return run_program(p, run, None)


if __name__ == "__main__":
    sys.exit(main())
