"""Importance matrices (llama-imatrix): the mean squared input of each column of a matrix."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from sardine_gguf.errors import FormatError

from . import native
from .arrays import F32Array
from .files import regular_size
from .gguf_file import Metadata

MAX_BYTES, MAX_ENTRIES, MAX_NAME_BYTES, MAX_DATASET_BYTES = 1 << 30, 1 << 20, 256, 1 << 16
# Beyond it the quantizers' float32 sums of squares overflow: worse types first, then a crash in ggml.
# Mean squared inputs of models are below 10^8.
MAX_IMPORTANCE = 1e12
_KEYS = {
    "imatrix.datasets": "arr[str]",
    "imatrix.chunk_count": "u32",
    "imatrix.chunk_size": "u32",
}
_SUM, _COUNT = ".in_sum2", ".counts"
_SHOWN_BYTES = 127  # of a text in quantize.imatrix.*, as llama-quantize writes it


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        name: the file's name as it was given.
        entries: float32 [n_cols] by the name of the tensor, from 0 to MAX_IMPORTANCE.
        datasets: what it was computed on; may be empty. chunks: how many; 0 if unknown.
    """

    name: str
    entries: dict[str, F32Array]
    datasets: list[str]
    chunks: int

    def importance(self, tensor: str, n_cols: int) -> F32Array | None:
        """The importance of a tensor's columns, or None where the file has none for it.

        Raises:
            FormatError: the file has another number of them.
        """
        found = self.entries.get(tensor)
        if found is None or len(found) == n_cols:
            return found
        # llama.cpp's rule: some tools store the embedding's use as a table of rows.
        if tensor == "token_embd.weight":
            return None
        raise _bad(
            self.name, tensor, f"{len(found)} values, the model's tensor has {n_cols} columns"
        )

    def metadata(self) -> Metadata:
        """The keys that llama-quantize writes about it."""
        out: Metadata = {"quantize.imatrix.file": ("str", _shown(self.name))}
        if self.datasets:
            out["quantize.imatrix.dataset"] = ("str", _shown(self.datasets[0]))
        out["quantize.imatrix.entries_count"] = ("u32", len(self.entries))
        if self.chunks > 0:
            out["quantize.imatrix.chunks_count"] = ("u32", self.chunks)
        return out


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Reads a file of either format of llama-imatrix: GGUF, or the older binary one.

    Raises:
        FormatError: the file is malformed, or holds a value that is not from 0 to MAX_IMPORTANCE.
        OSError: it cannot be read.
    """
    name = os.fspath(path)
    size = regular_size(Path(name))
    if size > MAX_BYTES:
        raise _bad(name, "size", f"{size} bytes, expected at most {MAX_BYTES}")
    with Path(name).open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
        file.seek(0)
        found = _read_gguf(name, file) if is_gguf else _read_legacy(name, file, size)
    if not found.entries:
        raise _bad(name, "entries", "holds no importance of any tensor")
    for tensor, values in found.entries.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise _bad(name, tensor, "holds NaN, infinity or a negative value")
        if values.max() > MAX_IMPORTANCE:
            raise _bad(
                name,
                tensor,
                f"holds the mean square {values.max():.3g}, expected at most {MAX_IMPORTANCE:.0e}; "
                "compute the importance matrix again with llama-imatrix",
            )
    return found


def _read_gguf(name: str, file: BinaryIO) -> Imatrix:
    header = native.GgufFile(os.fsencode(name))
    kv = dict(header.kv)
    for key, kind in _KEYS.items():
        if kv.get(key, ("nothing",))[0] != kind:
            raise _bad(
                name,
                key,
                f"expected {kind}, found {kv.get(key, ('nothing',))[0]}; is it an imatrix?",
            )
    arrays: dict[str, F32Array] = {}
    for tensor in header.tensors:
        if tensor.type != 0:
            raise _bad(name, tensor.name, "expected the type f32")
        file.seek(tensor.offset)
        arrays[tensor.name] = np.fromfile(file, np.dtype("<f4"), tensor.nbytes // 4)
    entries: dict[str, F32Array] = {}
    for tensor_name, sums in arrays.items():
        bare = tensor_name.removesuffix(_SUM).removesuffix(_COUNT)
        partner = bare + (_COUNT if tensor_name.endswith(_SUM) else _SUM)
        if bare == tensor_name or partner not in arrays:
            raise _bad(name, tensor_name, f"expected pairs of NAME{_SUM} and NAME{_COUNT}")
        if tensor_name.endswith(_SUM):
            entries[bare] = _mean(name, bare, sums, arrays[partner])
    return Imatrix(name, entries, list(kv["imatrix.datasets"][1]), kv["imatrix.chunk_count"][1])


def _mean(name: str, tensor: str, sums: F32Array, counts: F32Array) -> F32Array:
    """Sums [m * n] over counts [m]; ones where nothing was counted."""
    if sums.size == 0 or counts.size == 0 or sums.size % counts.size:
        raise _bad(name, tensor, f"{sums.size} sums are not of {counts.size} counts")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise _bad(name, tensor, "a count is not finite or negative")
    number = np.floor(counts + np.float32(0.5))[:, None]
    table = sums.reshape(counts.size, -1)
    mean = np.ones_like(table)
    np.divide(table, number, out=mean, where=number > 0)
    return mean.reshape(-1)


def _read_legacy(name: str, file: BinaryIO, size: int) -> Imatrix:
    """int32 n, then n times: text, int32 calls, int32 n_cols, float32 sums; then, if there, int32
    chunks and a text. A text is an int32 length and its bytes.
    """

    def number(what: str, limit: int) -> int:
        raw = file.read(4)
        value = struct.unpack("<i", raw)[0] if len(raw) == 4 else -1
        if not 0 <= value <= limit:
            raise _bad(name, what, f"expected 0 to {limit}, found {value}; is it an imatrix?")
        return int(value)

    def text(what: str, limit: int) -> str:
        length = number(what, min(limit, size - file.tell() - 4))
        return file.read(length).decode("utf-8", "replace")

    entries: dict[str, F32Array] = {}
    for i in range(number("entries", MAX_ENTRIES)):
        tensor = text(f"name of entry {i}", MAX_NAME_BYTES)
        calls = number(tensor, 2**31 - 1)
        n_cols = number(tensor, (size - file.tell() - 4) // 4)
        if tensor in entries or n_cols == 0:
            raise _bad(name, tensor, "occurs twice" if n_cols else "has no values")
        entries[tensor] = np.fromfile(file, np.dtype("<f4"), n_cols)
        entries[tensor] /= np.float32(max(calls, 1))
    chunks = number("chunks", 2**31 - 1) if file.tell() < size else 0
    dataset = text("dataset", MAX_DATASET_BYTES) if file.tell() < size else ""
    if file.tell() != size:
        raise _bad(name, "end", f"{size - file.tell()} bytes behind the last entry")
    return Imatrix(name, entries, [dataset] if dataset else [], chunks)


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:_SHOWN_BYTES].decode("utf-8", "ignore")


def _bad(name: str, field: str, message: str) -> FormatError:
    return FormatError(f"{name}: importance matrix: {field}: {message}", file=name, field=field)
