"""Kernels of another processor: cross-compiled into one program, run under QEMU's user emulation."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = (
    *(
        ROOT / "cpp/src/kernels" / f"{name}.cpp"
        for name in (
            "attention", "cpu_ops", "cpu_ops_neon", "cpu_ops_portable", "sparse_delta", "tile_neon",
            "token_tiles",
        )
    ),
    Path(__file__).with_suffix(".cpp"),
)  # fmt: skip
_TYPES = {"f32": 0, "f16": 1, "q8_0": 2}
_KV_TYPES = {"f16": 0, "f32": 1, "q8_0": 2}


def available() -> bool:
    """Whether the cross compiler and the emulator are installed."""
    return all(shutil.which(tool) for tool in (COMPILER, EMULATOR))


def build(folder: Path) -> Path:
    """The program, warnings being errors."""
    out = folder / "kernel_runner"
    command = [
        COMPILER,
        "-O1",
        "-std=c++20",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Werror",
    ]
    command += ["-static", "-DSARDINE_NEON=1", f"-I{ROOT / 'cpp/src'}", f"-I{ROOT / 'cpp/include'}"]
    subprocess.run([*command, *map(str, SOURCES), "-o", str(out)], check=True, timeout=600)
    return out


def _array(a: NDArray[Any]) -> bytes:
    data = np.ascontiguousarray(a).tobytes()
    return np.int64(len(data)).tobytes() + data


def delta_record(arguments: dict[str, Any], n_threads: int) -> bytes:
    """Of the arguments of _native.sparse_delta."""
    a = arguments
    shared = "shared" in a
    shared_type = _TYPES[a["shared_type"]] if shared else -1
    k = a["routes"].shape[1] // 2
    head = [a["n_rows"], a["n_cols"], a["block_columns"], len(a["scale"]), _TYPES[a["type"]]]
    head += [len(a["x"]), k, shared_type, n_threads]
    out = b"d" + _array(np.array(head, np.int64))
    for name in ("row_ptr", "col", "val", "scale", "routes", "x"):
        out += _array(a[name])
    out += _array(a["shared"] if shared else np.zeros(0, np.uint8))
    return out + _array(np.array([a["shared_scale"]] if shared else [], np.float32))


def attention_record(
    q: NDArray[np.float32],
    k: NDArray[Any],
    v: NDArray[Any],
    positions: NDArray[np.int32],
    scale: float,
) -> bytes:
    """Of the arguments of _native.attention; k and v are f16, f32, or bytes of q8_0."""
    kind = {2: "f16", 4: "f32", 1: "q8_0"}[k.itemsize]
    head = [len(q), q.shape[1], k.shape[1], q.shape[2], len(k), _KV_TYPES[kind]]
    out = b"a" + _array(np.array(head, np.int64))
    for a in (q, k, v, positions, np.array([scale], np.float32)):
        out += _array(a)
    return out


def run(program: Path, path: str, records: list[bytes]) -> list[NDArray[np.float32]]:
    """What each record gives, flat."""
    done = subprocess.run(
        [EMULATOR, str(program), path], input=b"".join(records), capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr.decode()
    stream = io.BytesIO(done.stdout)
    out = []
    while size := stream.read(8):
        out.append(np.frombuffer(stream.read(int.from_bytes(size, "little")), np.float32))
    assert len(out) == len(records)
    return out
