"""Strict reading of safetensors files: https://github.com/safetensors/safetensors#format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.errors import FormatError

from .arrays import DTYPES, DType
from .files import parse_json, read_json, regular_size
from .gguf_file import as_bytes
from .reading import read_columns, read_elements, read_exactly

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000

_NAMES = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
    "F8_E4M3": "f8_e4m3",
    "F8_E5M2": "f8_e5m2",
}
# Types that a file may hold but that nothing here reads; sizes in bits.
_OTHER_BITS = {
    "F8_E8M0": 8,
    "U16": 16,
    "U32": 32,
    "U64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "C64": 64,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a file. shape is row-major; dtype is None for types that are not read."""

    file: Path
    name: str
    type_name: str
    dtype: DType | None
    shape: tuple[int, ...]
    offset: int

    def known_type(self) -> DType:
        """The element type.

        Raises:
            FormatError: nothing here reads it.
        """
        if self.dtype is None:
            raise FormatError(
                f"{self.file}: tensor {self.name!r} has type {self.type_name}, "
                "expected F32, F16, BF16 or F64",
                file=str(self.file),
                field=self.name,
            )
        return self.dtype

    def array(self) -> NDArray[Any]:
        """All elements of a small tensor as stored (bf16 as uint16)."""
        out = np.empty(self.shape, self.known_type().numpy)
        if out.size:
            with self.file.open("rb", buffering=0) as file:
                read_exactly(file, as_bytes(out), self.offset, repr(self.name))
        return out

    def columns(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [..., start:stop] as stored."""
        kind, width = self.known_type().numpy, self.shape[-1]
        return read_columns(self.file, kind, self.offset, self.shape, width, start, stop)

    def elements(self, where: NDArray[np.int64]) -> NDArray[Any]:
        """A few elements as stored, by their flat numbers."""
        return read_elements(self.file, self.known_type().numpy, self.offset, where)

    def rows(self, step: int) -> Iterator[NDArray[Any]]:
        """The stored elements, step rows [n, cols] at a time; a vector counts as one row.

        They are read and not mapped, so that what was used does not stay resident. A chunk is
        valid until the next one.

        Raises:
            FormatError: a type that is not read.
            OSError: the file cannot be read, or is shorter than its header said.
        """
        n_rows, n_cols = (1, *self.shape) if len(self.shape) == 1 else self.shape
        buffer = np.empty((min(step, n_rows), n_cols), self.known_type().numpy)
        with self.file.open("rb", buffering=0) as file:
            at = self.offset
            for first in range(0, n_rows, step):
                chunk = buffer[: n_rows - first]
                view = as_bytes(chunk)
                # The next chunk comes from the disk while this one is converted.
                os.posix_fadvise(file.fileno(), at, 2 * len(view), os.POSIX_FADV_WILLNEED)
                read_exactly(file, view, at, repr(self.name))
                at += len(view)
                yield chunk


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Reads and validates the header of one file.

    Raises:
        FormatError: the header is malformed, or the tensors do not cover the data exactly.
        OSError: the file cannot be read.
    """
    size = regular_size(path)

    def bad(message: str, field: str = "header") -> FormatError:
        return FormatError(f"{path}: {message}", file=str(path), field=field)

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise bad(f"safetensors header of {length} bytes in a file of {size} bytes")
        header = parse_json(file.read(length), "safetensors header", str(path))
    if not isinstance(header, dict):
        raise bad("safetensors header: expected an object")
    notes = header.pop("__metadata__", None)
    if notes is not None and not (
        isinstance(notes, dict) and all(isinstance(text, str) for text in notes.values())
    ):
        raise bad("safetensors header: __metadata__: expected an object of texts", "__metadata__")
    if len(header) > MAX_TENSORS:
        raise bad(f"{len(header)} tensors, expected at most {MAX_TENSORS}")
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise bad(f"tensor {name[:200]!r}: expected dtype, shape and data_offsets", name)
        kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or (kind not in _NAMES and kind not in _OTHER_BITS):
            raise bad(f"tensor {name!r}: unknown dtype {str(kind)[:40]!r}", name)
        if not _is_counts(shape) or len(shape) > 8 or not _is_counts(span) or len(span) != 2:
            raise bad(f"tensor {name!r}: malformed shape or data_offsets", name)
        bits = DTYPES[_NAMES[kind]].size * 8 if kind in _NAMES else _OTHER_BITS[kind]
        for n in shape:
            bits *= n
        if bits % 8 or span[1] - span[0] != bits // 8:
            raise bad(
                f"tensor {name!r}: {kind} {shape} takes {bits // 8} bytes, "
                f"data_offsets span {span[1] - span[0]}",
                name,
            )
        dtype = DTYPES[_NAMES[kind]] if kind in _NAMES else None
        spans.append((span[0], span[1], name))
        tensors[name] = StoredTensor(path, name, kind, dtype, tuple(shape), 8 + length + span[0])
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise bad(
                f"tensor {name!r} starts at byte {start} of the data, expected {end} "
                "(no gaps, no overlaps)",
                name,
            )
        end = stop
    if 8 + length + end != size:
        raise bad(f"tensors end at byte {8 + length + end} of a file of {size} bytes")
    return tensors


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def open_folder(folder: Path, stem: str = "model") -> dict[str, StoredTensor]:
    """All tensors of a model folder: STEM.safetensors, or the files of its index.

    Raises:
        FormatError: no or malformed files, an index that does not match them or leaves the folder.
    """
    index_path = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if single.exists():
        return read_header(inside(folder, single.name))
    if not index_path.exists():
        raise FormatError(
            f"{folder}: neither {single.name} nor {index_path.name}; "
            "expected the folder of a model in safetensors format",
            file=str(folder),
        )
    return open_index(index_path)


def open_index(index_path: Path) -> dict[str, StoredTensor]:
    """All tensors of the files that a *.safetensors.index.json names, which lie beside it.

    Raises:
        FormatError: a malformed index, one that does not match its files or leaves the folder.
    """
    folder = index_path.parent
    index = read_json(index_path, MAX_HEADER_BYTES)
    mapping = index.get("weight_map")
    if (
        not isinstance(mapping, dict)
        or not mapping
        or not all(isinstance(v, str) for v in mapping.values())
    ):
        raise FormatError(
            f"{index_path}: weight_map must map tensor names to file names",
            file=str(index_path),
            field="weight_map",
        )
    shards = {name: read_header(inside(folder, name)) for name in sorted(set(mapping.values()))}
    tensors: dict[str, StoredTensor] = {}
    for name, shard in mapping.items():
        if name not in shards[shard]:
            raise FormatError(
                f"{index_path}: tensor {name!r} is not in {shard}", file=str(index_path), field=name
            )
        tensors[name] = shards[shard][name]
    for shard, held in shards.items():
        for name in held:
            if mapping.get(name) != shard:
                raise FormatError(
                    f"{index_path}: {shard} holds {name!r}, which the index does not place there",
                    file=str(index_path),
                    field=name,
                )
    return tensors


def inside(folder: Path, name: str) -> Path:
    """The path of a file that an index names, which must lie in the folder itself.

    A link is followed within the folder, and within the model's blobs in the layout of the
    Hugging Face cache (snapshots/REVISION/NAME -> ../../blobs/HASH).
    """
    path = folder / name
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise FormatError(
            f"{folder}: the file name {name[:200]!r} leaves the model's folder",
            file=str(folder),
            field="weight_map",
        )
    if not path.exists():
        raise FormatError(f"{path}: named by the model's index but not there", file=str(path))
    real, home = path.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if real.parent not in allowed:
        raise FormatError(
            f"{path}: leads to {real}, outside of the model's folder",
            file=str(path),
            field="weight_map",
        )
    return path
