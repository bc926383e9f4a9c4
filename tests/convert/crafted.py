"""Checkpoints and safetensors files that torch.save and safetensors would not write."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def rezip(source: Path, target: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """Copies an archive with its members changed by edit (names without the prefix)."""
    with zipfile.ZipFile(source) as archive:
        names = [i.filename for i in archive.infolist()]
        members = {n.split("/", 1)[1]: archive.read(n) for n in names}
    edit(members)
    return make_zip(target, {"archive/" + n: data for n, data in members.items()})


def make_zip(target: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """Writes members under their full names."""
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def with_pickle(target: Path, data: bytes, **more: bytes) -> Path:
    """An archive with this data.pkl and members data/KEY."""
    members = {"archive/data.pkl": data, "archive/version": b"3\n"}
    members.update({f"archive/data/{k}": v for k, v in more.items()})
    return make_zip(target, members)


class Op:
    """Pickle opcodes by hand."""

    @staticmethod
    def glob(module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    @staticmethod
    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    @staticmethod
    def number(value: int) -> bytes:
        data = pickle.encode_long(value)
        return b"\x8a" + bytes([len(data)]) + data

    @staticmethod
    def tuple(*items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    @classmethod
    def storage(cls, count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
        parts = (cls.text("storage"), cls.glob("torch", kind), cls.text(key), cls.text("cpu"))
        return cls.tuple(*parts, cls.number(count)) + b"Q"

    @classmethod
    def tensor(cls, count: int, offset: int, size: list[int], stride: list[int]) -> bytes:
        """A float32 tensor on the storage "0" of count elements."""
        arguments = cls.tuple(
            cls.storage(count),
            cls.number(offset),
            cls.tuple(*map(cls.number, size)),
            cls.tuple(*map(cls.number, stride)),
            b"\x89",
            cls.glob("collections", "OrderedDict") + b")R",
        )
        return cls.glob("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"

    @classmethod
    def checkpoint(cls, layer_value: bytes) -> bytes:
        """{"srde_layers": {"0": layer_value}}"""
        inner = b"}" + cls.text("0") + layer_value + b"s"
        return b"\x80\x02}" + cls.text("srde_layers") + inner + b"s."


def legacy(target: Path, value: Any) -> Path:
    """torch.save's format before 1.6."""
    torch.save(value, target, _use_new_zipfile_serialization=False)
    return target


def safetensors(target: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    """A safetensors file with any header (bytes, or an object to write as JSON)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    out = io.BytesIO()
    out.write(struct.pack("<Q", len(raw) if length is None else length))
    out.write(raw)
    out.write(data)
    target.write_bytes(out.getvalue())
    return target
