"""A GGUF file as lists that a test can change, and back to bytes. No checks: bad files are the point."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64"]
FORMATS = {
    "u8": "B",
    "i8": "b",
    "u16": "H",
    "i16": "h",
    "u32": "I",
    "i32": "i",
    "f32": "f",
    "bool": "B",
    "u64": "Q",
    "i64": "q",
    "f64": "d",
}


def pack_text(text: str | bytes) -> bytes:
    """A length and the bytes."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pack_scalar(kind: str, value: Any) -> bytes:
    """A value without its type."""
    return pack_text(value) if kind == "str" else struct.pack("<" + FORMATS[kind], value)


def pack_array(kind: str, values: list[Any], count: int | None = None) -> bytes:
    """An array without its outer type; `count` replaces the true one."""
    n = len(values) if count is None else count
    return struct.pack("<IQ", KINDS.index(kind), n) + b"".join(pack_scalar(kind, v) for v in values)


@dataclass
class Entry:
    """A key; `kind` is the number in the file, `payload` everything behind it."""

    key: bytes
    kind: int
    payload: bytes

    def value(self) -> Any:
        """The decoded value; strings as bytes."""
        reader = Reader(self.payload)
        return reader.value(KINDS[self.kind])


@dataclass
class Tensor:
    """A tensor; `offset` None is computed when written, `n_dims` None is len(ne)."""

    name: bytes
    ne: list[int]
    type: int
    data: bytes
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class Reader:
    """Reads forward."""

    data: bytes
    at: int = 0

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if self.at + n > len(self.data):
            raise ValueError("past the end")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> Any:
        """One struct item."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> bytes:
        """A length and the bytes."""
        return self.take(self.number("Q"))

    def value(self, kind: str) -> Any:
        """A value of a kind's name."""
        if kind == "str":
            return self.text()
        if kind == "arr":
            element, n = KINDS[self.number("I")], self.number("Q")
            return [self.value(element) for _ in range(n)]
        return self.number(FORMATS[kind])


@dataclass
class Gguf:
    """A whole file."""

    entries: list[Entry]
    tensors: list[Tensor]
    alignment: int = 32
    magic: bytes = b"GGUF"
    version: int = 3
    n_entries: int | None = None
    n_tensors: int | None = None
    tail: bytes = b""
    header_size: int = field(default=0, compare=False)

    @staticmethod
    def parse(data: bytes) -> Gguf:
        """Reads a valid file."""
        r = Reader(data)
        assert r.take(4) == b"GGUF"
        assert r.number("I") == 3
        n_tensors, n_entries = r.number("Q"), r.number("Q")
        entries = []
        for _ in range(n_entries):
            key, kind, start = r.text(), r.number("I"), r.at
            r.value(KINDS[kind])
            entries.append(Entry(key, kind, data[start : r.at]))
        aligned = [e.value() for e in entries if e.key == b"general.alignment"]
        alignment = aligned[0] if aligned else 32
        infos = []
        for _ in range(n_tensors):
            name = r.text()
            ne = [r.number("q") for _ in range(r.number("I"))]
            infos.append((name, ne, r.number("I"), r.number("Q")))
        start = -(-r.at // alignment) * alignment
        ends = [*sorted(o for *_, o in infos), len(data) - start]
        tensors = []
        for name, ne, kind, offset in infos:
            end = ends[ends.index(offset) + 1]
            tensors.append(Tensor(name, ne, kind, data[start + offset : start + end]))
        return Gguf(entries, tensors, alignment, header_size=r.at)

    def build(self) -> bytes:
        """The file's bytes."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_entries = len(self.entries) if self.n_entries is None else self.n_entries
        out = bytearray(self.magic + struct.pack("<IQQ", self.version, n_tensors, n_entries))
        for e in self.entries:
            out += pack_text(e.key) + struct.pack("<I", e.kind) + e.payload
        at, body = 0, bytearray()
        for t in self.tensors:
            n_dims = len(t.ne) if t.n_dims is None else t.n_dims
            out += pack_text(t.name) + struct.pack("<I", n_dims)
            out += b"".join(struct.pack("<q", n) for n in t.ne)
            out += struct.pack("<IQ", t.type % 2**32, at if t.offset is None else t.offset)
            padding = -len(t.data) % self.alignment
            body += t.data + bytes(padding)
            at += len(t.data) + padding
        out += bytes(-len(out) % self.alignment)
        return bytes(out + body + self.tail)

    # ---- access ----

    def entry(self, key: str) -> Entry:
        """The key's entry."""
        return next(e for e in self.entries if e.key == key.encode())

    def set(self, key: str, kind: str, value: Any) -> None:
        """Replaces or adds a scalar or text."""
        self.put(key, KINDS.index(kind), pack_scalar(kind, value))

    def set_array(self, key: str, kind: str, values: list[Any]) -> None:
        """Replaces or adds an array."""
        self.put(key, KINDS.index("arr"), pack_array(kind, values))

    def put(self, key: str, kind: int, payload: bytes) -> None:
        """Replaces or adds raw bytes."""
        for e in self.entries:
            if e.key == key.encode():
                e.kind, e.payload = kind, payload
                return
        self.entries.append(Entry(key.encode(), kind, payload))

    def drop(self, key: str) -> None:
        """Removes a key."""
        self.entries = [e for e in self.entries if e.key != key.encode()]

    def value(self, key: str) -> Any:
        """A key's decoded value."""
        return self.entry(key).value()

    def tensor(self, name: str) -> Tensor:
        """A tensor by name."""
        return next(t for t in self.tensors if t.name == name.encode())

    def drop_tensor(self, name: str) -> None:
        """Removes a tensor."""
        self.tensors = [t for t in self.tensors if t.name != name.encode()]

    def poke(self, name: str, code: str, index: int, value: Any) -> None:
        """Replaces one item of a tensor's data, of struct code `code`."""
        t = self.tensor(name)
        size = struct.calcsize("<" + code)
        data = bytearray(t.data)
        data[index * size : (index + 1) * size] = struct.pack("<" + code, value)
        t.data = bytes(data)

    def peek(self, name: str, code: str, index: int) -> Any:
        """One item of a tensor's data."""
        size = struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, self.tensor(name).data, index * size)[0]


def load(path: Path) -> Gguf:
    """Reads a file."""
    return Gguf.parse(path.read_bytes())
