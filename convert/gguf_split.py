"""The parts of a GGUF model that llama-gguf-split cut in pieces, NAME-00001-of-00003.gguf."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from . import native
from .files import regular_size
from .gguf_file import Metadata

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")


def open_parts(path: Path) -> tuple[Metadata, list[tuple[Path, Any]]]:
    """Reads the headers of a GGUF file, or of all parts of the split model that it is a part of.

    Args:
        path: a whole file, or any part.

    Returns:
        The model's metadata without split.*, and each file with its header, in order.

    Raises:
        FormatError: a malformed file; parts that are missing, of another model, disagree in their
            number or metadata, or hold a tensor twice or not all of them.
        OSError: a file cannot be read.
    """
    header = _open(path)
    kv: Metadata = dict(header.kv)
    count = _integer(path, kv, COUNT, 1)
    if count in (0, 1):
        return _without_split(kv), [(path, header)]
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise _bad(
            path, COUNT, f"is one of {count} parts, expected the name NAME-00001-of-{count:05}.gguf"
        )
    paths = [path.with_name(f"{match[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    for part in paths:
        if not part.exists():
            raise _bad(part, "file", f"is missing: {path.name} is one of {count} parts")
    parts: list[tuple[Path, Any]] = []
    common: Metadata = {}
    for i, part in enumerate(paths):
        parts.append((part, header if part == path else _open(part)))
        own: Metadata = kv if part == path else dict(parts[-1][1].kv)
        common = common if i else own
        _check_part(part, own, i, count, common, paths[0].name)
    _check_tensors(parts, common)
    return _without_split(common), parts


def _open(path: Path) -> Any:
    regular_size(path)
    return native.GgufFile(os.fsencode(path))


def _without_split(kv: Metadata) -> Metadata:
    return {key: value for key, value in kv.items() if key not in (NO, COUNT, TENSORS)}


def _check_part(part: Path, kv: Metadata, i: int, count: int, common: Metadata, first: str) -> None:
    for key, expected in ((NO, i), (COUNT, count)):
        found = _integer(part, kv, key)
        if found != expected:
            raise _bad(part, key, f"expected {expected} by the file's name, found {found}")
    # The first part holds the metadata; the others may repeat it, no more.
    for key, value in _without_split(kv).items():
        if key not in common or _text(common[key]) != _text(value):
            there = _text(common[key])[:60] if key in common else "nothing"
            raise _bad(
                part,
                key,
                f"is {_text(value)[:60]}, {there} in {first}: the parts are of two models",
            )
    for key in (TENSORS,):
        if key in common and key in kv and common[key][1] != kv[key][1]:
            raise _bad(part, key, f"is {kv[key][1]!s:.40}, {common[key][1]!s:.40} in the first")


def _check_tensors(parts: list[tuple[Path, Any]], common: Metadata) -> None:
    holder: dict[str, Path] = {}
    for part, header in parts:
        for tensor in header.tensors:
            if tensor.name in holder:
                raise _bad(part, tensor.name, f"is also in {holder[tensor.name].name}")
            holder[tensor.name] = part
    first = parts[0][0]
    wanted = _integer(first, common, TENSORS)
    if len(holder) != wanted:
        raise _bad(first, TENSORS, f"is {wanted}, the parts hold {len(holder)} tensors")


def _integer(path: Path, kv: Metadata, key: str, default: int | None = None) -> int:
    kind, value = kv.get(key, ("nothing", None) if default is None else ("i32", default))
    if kind not in _INTEGERS:
        raise _bad(path, key, f"expected an integer, found {kind}")
    return int(value)


def _text(entry: tuple[str, Any]) -> str:
    return f"{entry[0]} {entry[1]!r}"


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
