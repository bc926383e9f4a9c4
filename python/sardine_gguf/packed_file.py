"""The experts of a file as NumPy views of its mapping, unpacked plainly by the rules of docs/format.md.

Shares nothing with the runtime's or the converter's packing but the header's reader: it is what both are
checked against.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sardine_gguf._native import GgufFile, GgufTensor
from sardine_gguf.errors import FormatError

MATRICES = ("gate", "up", "down")
PARTS = ("row_ptr", "col", "val", "scale", "shared", "shared_scale")
COMPENSATIONS = ("none", "residual", "extracted")
VERSIONS = (1, 2)
ARCHITECTURES = ("mistral3", "llama")
VALUE_TYPES = {0: "f32", 1: "f16", 8: "q8_0"}
Q8_BLOCK = np.dtype([("d", "<f2"), ("q", "i1", 32)])
_F32, _I16, _I32 = 0, 25, 26


@dataclass(frozen=True)
class PackedMatrix:
    """The experts' changes to one FFN matrix, still packed.

    Attributes:
        row_ptr: int32 [B * n_rows + 1]; col: uint16 [n], the column within its block.
        stored: [E, n] float32 or float16, or Q8_BLOCK [E, n / 32 rounded up]; value_type says which.
        scale: float32 [E].
        shared: the part that every mode adds, as the values of one expert; None without it.
    """

    n_rows: int
    n_cols: int
    block_columns: int
    row_ptr: NDArray[np.int32]
    col: NDArray[np.uint16]
    stored: NDArray[Any]
    value_type: str
    scale: NDArray[np.float32]
    shared: PackedMatrix | None = None

    @property
    def n(self) -> int:
        """Positions."""
        return len(self.col)

    def positions(self) -> NDArray[np.int64]:
        """Row-major element numbers [n] within the matrix, in the file's order. Needs valid row pointers."""
        line = self._lines()
        block, row = line // self.n_rows, line % self.n_rows
        return row * self.n_cols + block * self.block_columns + self.col

    def _lines(self) -> NDArray[np.int64]:
        """block * n_rows + row of each position [n]."""
        rows = self.row_ptr.astype(np.int64)
        counts = rows[1:] - rows[:-1]
        return np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def values(self, expert: int, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
        """An expert's values at positions [start, stop), exactly; start is a multiple of 32."""
        stop = self.n if stop is None else min(stop, self.n)
        scale = np.float64(self.scale[expert])
        if self.value_type != "q8_0":
            return self.stored[expert, start:stop].astype(np.float64) * scale
        blocks = self.stored[expert, start // 32 : -(-stop // 32)]
        wide = blocks["q"].astype(np.float64) * blocks["d"].astype(np.float64)[:, None] * scale
        return wide.reshape(-1)[: stop - start]

    def defect(self) -> tuple[str, str] | None:
        """The first broken rule as (part, what), or None; looks at every index, scale and value."""
        rows = self.row_ptr.astype(np.int64)
        if rows[0] != 0 or rows[-1] != self.n or (np.diff(rows) < 0).any():
            return "row_ptr", f"does not rise from 0 to {self.n}"
        position = self.positions()
        line = self._lines()
        block = line // self.n_rows
        width = np.minimum(self.block_columns, self.n_cols - block * self.block_columns)
        if (self.col >= width).any():
            return "col", "has a column beyond its block"
        same = line[1:] == line[:-1]
        if (same & (position[1:] <= position[:-1])).any():
            return "col", "has columns that do not rise within a row"
        own = self._value_defect()
        if own or self.shared is None:
            return own
        other = self.shared._value_defect()
        return other and ({"val": "shared", "scale": "shared_scale"}[other[0]], other[1])

    def _value_defect(self) -> tuple[str, str] | None:
        mantissa = np.frexp(self.scale)[0]
        if not (np.isfinite(self.scale).all() and (mantissa == 0.5).all()):
            return "scale", "has a scale that is not a positive power of two"
        for expert in range(len(self.scale)):
            row = self.stored[expert]
            if not np.isfinite(row["d"] if self.value_type == "q8_0" else row).all():
                return "val", f"has a value of expert {expert} that is not finite"
            if self.value_type == "q8_0" and row["q"].reshape(-1)[self.n :].any():
                return "val", f"has padding of expert {expert} that is not zero"
        return None


class PackedFile:
    """A model, adapter or plain base file: header and shapes checked, nothing else read.

    Attributes:
        kind: "model" (with experts), "adapter" or "base" (without).
        n_layers, hidden, inner: L, H, I of the base.
        layers, n_experts, block_columns: of the experts; empty and 0 for a base.

    Raises:
        FormatError: not GGUF, another architecture, or keys and shapes against docs/format.md.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.header = GgufFile(os.fsencode(path))
        with open(path, "rb") as file:  # noqa: PTH123  path may be bytes
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.tensors = {t.name: t for t in self.header.tensors}
        self.arch = self.text("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise self.bad(
                "general.architecture",
                f"expected {' or '.join(ARCHITECTURES)}, found {self.arch[:60]!r}",
            )
        is_adapter = self.header.get("general.type") == "adapter"
        if is_adapter and (kind := self.text("adapter.type")) != "sardine":
            raise self.bad("adapter.type", f"expected 'sardine', found {kind[:60]!r}")
        self.prefix = "sardine.base." if is_adapter else f"{self.arch}."
        self.n_layers = self.integer(self.prefix + "block_count", 4096)
        self.hidden = self.integer(self.prefix + "embedding_length", 1 << 20)
        self.inner = self.integer(self.prefix + "feed_forward_length", 1 << 24)
        self.layers: list[int] = []
        self.n_experts = self.block_columns = 0
        has_experts = is_adapter or self.header.get("sardine.version") is not None
        self.kind = "adapter" if is_adapter else "model" if has_experts else "base"
        if has_experts:
            self._read_expert_keys()

    def _read_expert_keys(self) -> None:
        self.version = self.integer("sardine.version", 2**31)
        if self.version not in VERSIONS:
            raise self.bad(
                "sardine.version", f"expected {VERSIONS[0]} to {VERSIONS[-1]}, found {self.version}"
            )
        self.n_experts = self.integer("sardine.expert_count", 256)
        self.top_k = self.integer("sardine.expert_used_count", self.n_experts)
        self.block_columns = self.integer("sardine.block_columns", 65536)
        self.mode = self.text("sardine.delta_mode")
        if self.mode not in ("sparse", "gain"):
            raise self.bad(
                "sardine.delta_mode", f"expected sparse or gain, found {self.mode[:40]!r}"
            )
        key, default = "sardine.compensation", "none" if self.version == 1 else None
        self.compensation = self.text(key, default)
        allowed = COMPENSATIONS[: 1 + self.version]
        if self.compensation not in allowed:
            raise self.bad(
                key, f"expected {' or '.join(allowed)}, found {self.compensation[:40]!r}"
            )
        self.names = self._list("sardine.expert_names", str)
        if len(self.names) != self.n_experts:
            raise self.bad(
                "sardine.expert_names", f"expected {self.n_experts} names, found {len(self.names)}"
            )
        self.layers = self._list("sardine.layers", int)
        if not self.layers or sorted(set(self.layers)) != self.layers:
            raise self.bad("sardine.layers", "expected rising layer numbers")
        if self.layers[-1] >= self.n_layers:
            raise self.bad("sardine.layers", f"{self.layers[-1]} of {self.n_layers} layers")

    # ---- keys ----

    def text(self, key: str, default: str | None = None) -> str:
        """A text's value."""
        value = self.header.get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, f"expected a text, found {_kind(value)}")
        return value

    def integer(self, key: str, high: int, default: int | None = None) -> int:
        """An integer from 1 to high."""
        value = self.header.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            found = value if isinstance(value, int) else _kind(value)
            raise self.bad(key, f"expected an integer from 1 to {high}, found {found}")
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self.header.get(key)
        if not isinstance(value, list) or not all(type(v) is kind for v in value):
            raise self.bad(key, f"expected a list, found {_kind(value)}")
        return value

    # ---- tensors ----

    def raw(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """A tensor's bytes."""
        return self.data[tensor.offset : tensor.offset + tensor.nbytes]

    def forget(self) -> None:
        """Gives back the memory of what was looked at; the views stay valid and read it again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def require(self, name: str, type_id: int, *ne: int) -> NDArray[np.uint8]:
        """The bytes of a tensor of that type and shape."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self.bad(name, "there is no such tensor")
        found, wanted = ([*shape, 1, 1, 1][:4] for shape in (tensor.shape, ne))
        if tensor.type != type_id or found != wanted:
            raise self.bad(
                name,
                f"expected type {type_id} and shape {list(ne)}, "
                f"found type {tensor.type} and shape {list(tensor.shape)}",
            )
        return self.raw(tensor)

    def router(self, layer: int) -> NDArray[np.float32]:
        """float32 [E, H]."""
        name = f"blk.{layer}.ffn_gate_inp.weight"
        raw = self.require(name, _F32, self.hidden, self.n_experts)
        return raw.view("<f4").reshape(self.n_experts, self.hidden)

    def mean(self, layer: int) -> NDArray[np.float32]:
        """float32 [E]."""
        return self.require(f"blk.{layer}.ffn_delta.mean", _F32, self.n_experts).view("<f4")

    def shape_of(self, matrix: str) -> tuple[int, int]:
        """(n_rows, n_cols)."""
        return (self.hidden, self.inner) if matrix == "down" else (self.inner, self.hidden)

    def count(self, layer: int, matrix: str) -> int:
        """Positions of a matrix, by a tensor's shape."""
        tensor = self.tensors.get(f"blk.{layer}.ffn_{matrix}_delta.col")
        return 0 if tensor is None else int(tensor.shape[0])

    def matrix(self, layer: int, matrix: str) -> PackedMatrix | None:
        """The matrix's arrays; None where it has no positions."""
        prefix = f"blk.{layer}.ffn_{matrix}_delta."
        if not any(prefix + part in self.tensors for part in PARTS):
            return None
        n_rows, n_cols = self.shape_of(matrix)
        n, n_blocks = self.count(layer, matrix), -(-n_cols // self.block_columns)
        row_ptr = self.require(prefix + "row_ptr", _I32, n_blocks * n_rows + 1)
        col = self.require(prefix + "col", _I16, n)
        packed = PackedMatrix(
            n_rows,
            n_cols,
            self.block_columns,
            row_ptr.view("<i4"),
            col.view("<u2"),
            *self._values(prefix + "val", n, self.n_experts),
            self.require(prefix + "scale", _F32, self.n_experts).view("<f4"),
        )
        if self.compensation == "extracted":
            stored, value_type = self._values(prefix + "shared", n, 1)
            scale = self.require(prefix + "shared_scale", _F32, 1).view("<f4")
            shared = replace(packed, stored=stored, value_type=value_type, scale=scale)
            return replace(packed, shared=shared)
        for part in ("shared", "shared_scale"):
            if prefix + part in self.tensors:
                raise self.bad(
                    prefix + part, f"there is one, but sardine.compensation is {self.compensation}"
                )
        return packed

    def _values(self, name: str, n: int, n_rows: int) -> tuple[NDArray[Any], str]:
        """Stored values [n_rows, n or blocks] and their type."""
        tensor = self.tensors.get(name)
        value_type = VALUE_TYPES.get(tensor.type) if tensor is not None else None
        if tensor is None or value_type is None:
            raise self.bad(name, "expected a tensor of type f32, f16 or q8_0")
        stored = -(-n // 32) * 32 if value_type == "q8_0" else n
        raw = self.require(name, tensor.type, stored, n_rows)
        dtypes: dict[str, Any] = {"f32": "<f4", "f16": "<f2", "q8_0": Q8_BLOCK}
        return raw.view(dtypes[value_type]).reshape(n_rows, -1), value_type

    def matrices(self) -> Iterator[tuple[int, str, PackedMatrix]]:
        """(layer, matrix, arrays) of all that have positions."""
        for layer in self.layers:
            for name in MATRICES:
                packed = self.matrix(layer, name)
                if packed is not None:
                    yield layer, name, packed

    def bad(self, field: str, message: str) -> FormatError:
        """A FormatError about a key or tensor of this file."""
        return FormatError(f"{self.path}: {field}: {message}", file=self.path, field=field)


def is_expert_tensor(name: str) -> bool:
    """True for names of tensors that only experts need."""
    return ".ffn_gate_inp." in name or (".ffn_" in name and "_delta." in name)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
