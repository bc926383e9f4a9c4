"""Decoding of the pickle opcodes that torch.save writes for tensors in dicts and lists."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

# What follows an opcode: nothing, a number (struct format), a text or an integer with a length
# of so many bytes before it, or two lines.
_OPCODES: dict[int, tuple[str, str]] = {
    ord(code): (name, argument)
    for code, name, argument in (
        ("\x80", "PROTO", "<B"), ("\x95", "FRAME", "<Q"), (".", "STOP", ""), ("(", "MARK", ""),
        ("N", "NONE", ""), ("\x88", "NEWTRUE", ""), ("\x89", "NEWFALSE", ""),
        (")", "EMPTY_TUPLE", ""), ("}", "EMPTY_DICT", ""), ("]", "EMPTY_LIST", ""),
        ("J", "LITERAL", "<i"), ("K", "LITERAL", "<B"), ("M", "LITERAL", "<H"),
        ("G", "LITERAL", ">d"), ("\x8a", "LITERAL", "integer 1"), ("\x8b", "LITERAL", "integer 4"),
        ("X", "LITERAL", "text 4"), ("\x8c", "LITERAL", "text 1"), ("\x8d", "LITERAL", "text 8"),
        ("d", "DICT", ""), ("l", "LIST", ""), ("t", "TUPLE", ""), ("\x85", "TUPLE1", ""),
        ("\x86", "TUPLE2", ""), ("\x87", "TUPLE3", ""), ("s", "SETITEM", ""),
        ("u", "SETITEMS", ""), ("a", "APPEND", ""), ("e", "APPENDS", ""),
        ("c", "GLOBAL", "lines"), ("\x93", "STACK_GLOBAL", ""), ("Q", "BINPERSID", ""),
        ("R", "REDUCE", ""), ("b", "BUILD", ""), ("q", "PUT", "<B"), ("r", "PUT", "<I"),
        ("\x94", "MEMOIZE", ""), ("h", "GET", "<B"), ("j", "GET", "<I"),
    )
}  # fmt: skip


def operations(data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Yields (name, argument, position after it). The pickle module documents the opcodes.

    Raises:
        ValueError: an opcode that torch.save does not write for tensors, or the data ends early.
    """
    at = 0
    while at < len(data):
        found = _OPCODES.get(data[at])
        if found is None:
            raise ValueError(
                f"the operation {data[at : at + 1]!r} is not one that torch.save writes for tensors"
            )
        name, kind = found
        at += 1
        if not kind:
            yield name, None, at
            continue
        argument: Any
        if kind == "lines":
            module, global_name, rest = data[at : at + 400].split(b"\n", 2)
            argument = (module.decode(), global_name.decode())
            at = min(at + 400, len(data)) - len(rest)
        elif kind.startswith("<") or kind.startswith(">"):
            size = struct.calcsize(kind)
            if at + size > len(data):
                raise ValueError("the data ends within an operation")
            (argument,) = struct.unpack_from(kind, data, at)
            at += size
        elif kind:
            what, digits = kind.split()
            start = at + int(digits)
            length = int.from_bytes(data[at:start], "little")
            at = start + length
            if at > len(data):
                raise ValueError("the data ends within an operation")
            if what == "text":
                argument = data[start:at].decode()
            else:
                if length > 8:
                    raise ValueError("an integer beyond 64 bits")
                argument = int.from_bytes(data[start:at], "little", signed=True)
        yield name, argument, at
    raise ValueError("it has no end")
