"""Writing a GGUF v3 file: a header laid out before any data, then tensors streamed in order."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from . import schema

# Metadata: key -> (type, value); type as in the header reader: "u32", "str", "arr[f32]", ...
Metadata = dict[str, tuple[str, Any]]

_TYPE_IDS = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "arr": 9,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
_PACK = {
    "u8": "B",
    "i8": "b",
    "u16": "H",
    "i16": "h",
    "u32": "I",
    "i32": "i",
    "f32": "f",
    "bool": "?",
    "u64": "Q",
    "i64": "q",
    "f64": "d",
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the file. type: ggml's id; ne: ggml's order, first dimension contiguous."""

    name: str
    type: int
    ne: tuple[int, ...]
    nbytes: int


class Part(Protocol):
    """Some consecutive tensors of the file, whose bytes are made when they are written."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors, in file order."""

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields (tensor name, bytes-like piece) in file order."""


def spec(name: str, ggml_type: schema.GgmlType, *ne: int) -> TensorSpec:
    """A spec of a known type; ne[0] must be whole blocks."""
    nbytes = ggml_type.row_bytes(ne[0])
    for n in ne[1:]:
        nbytes *= n
    return TensorSpec(name, ggml_type.id, ne, nbytes)


def padded(n: int, alignment: int) -> int:
    """n rounded up to a multiple of alignment."""
    return -(-n // alignment) * alignment


def _pack_string(text: str) -> bytes:
    # surrogateescape: what a lenient reader could not decode is written as it was.
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _pack_value(type_name: str, value: Any) -> bytes:
    if type_name == "str":
        return _pack_string(value)
    return struct.pack("<" + _PACK[type_name], value)


def pack_metadata(metadata: Metadata) -> bytes:
    """The key-value section."""
    out = bytearray()
    for key, (type_name, value) in metadata.items():
        out += _pack_string(key)
        if type_name.startswith("arr["):
            element = type_name[4:-1]
            out += struct.pack("<IIQ", _TYPE_IDS["arr"], _TYPE_IDS[element], len(value))
            if element == "str":
                out += b"".join(map(_pack_string, value))
            else:
                out += struct.pack(f"<{len(value)}{_PACK[element]}", *value)
        else:
            out += struct.pack("<I", _TYPE_IDS[type_name]) + _pack_value(type_name, value)
    return bytes(out)


def pack_header(metadata: Metadata, specs: Iterable[TensorSpec], alignment: int) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    specs = list(specs)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(specs), len(metadata)))
    out += pack_metadata(metadata)
    offset = 0
    for tensor in specs:
        out += _pack_string(tensor.name)
        out += struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne)
        out += struct.pack("<IQ", tensor.type, offset)
        offset += padded(tensor.nbytes, alignment)
    return bytes(out) + bytes(padded(len(out), alignment) - len(out))


def stream(parts: Iterable[Part], alignment: int) -> Iterator[tuple[str, Any]]:
    """Yields (tensor name, bytes-like) of all tensors with their padding.

    Raises:
        RuntimeError: a part made other bytes than its specs say (a defect of this package).
    """
    for part in parts:
        expected = iter(part.specs)
        current: TensorSpec | None = None
        left = 0
        for name, piece in part.produce():
            while left == 0 and (current is None or current.name != name):
                current = next(expected, None)
                if current is None or current.name != name:
                    raise RuntimeError(f"tensor {name} was not announced at this place")
                left = current.nbytes
            if current is None or current.name != name or len(piece) > left:
                raise RuntimeError(f"tensor {name}: more bytes than announced")
            left -= len(piece)
            yield name, piece
            if left == 0:
                yield name, bytes(padded(current.nbytes, alignment) - current.nbytes)
        if left or next(expected, None) is not None:
            raise RuntimeError("a tensor was announced but not written in full")


def as_bytes(array: Any) -> memoryview:
    """The bytes of a C-contiguous array, not copied."""
    return memoryview(array.reshape(-1).view("u1")).cast("B")
