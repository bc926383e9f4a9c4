"""Opening input files: regular files only, bounded sizes, strict JSON."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

MAX_JSON_BYTES = 64 << 20  # tokenizers; published ones have 17 MB
MAX_CONFIG_BYTES = 4 << 20  # published ones have some thousand bytes
# What the values of a text may take in memory: so much, and so much more for each of its bytes. The
# published tokenizers take half of it; "[],[],..." would take 30 times its length.
_VALUES_BYTES, _VALUES_FACTOR = 48 << 20, 6


def regular_size(path: Path) -> int:
    """Size of a regular file in bytes.

    Raises:
        FormatError: path is a folder, a pipe, a device.
        OSError: it does not exist or cannot be examined.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise FormatError(
            f"{path}: expected a regular file, found {_kind(info.st_mode)}", file=str(path)
        )
    return info.st_size


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return name
    return "a device"


def parse_json(data: bytes, what: str, file: str) -> Any:
    """Parses UTF-8 JSON; duplicate keys, NaN, too deep nesting and too many values are refused.

    Raises:
        FormatError: anything that is not such JSON; what names the part of the file.
    """
    # About what CPython needs for lists and dicts, for items, and for keys with their values.
    counts = ((b"[", 64), (b"{", 64), (b",", 32), (b":", 128))
    needed = sum(data.count(mark) * size for mark, size in counts)
    if needed > _VALUES_BYTES + _VALUES_FACTOR * len(data):
        raise FormatError(
            f"{file}: {what} holds too many values: about {needed >> 20} MiB of them in "
            f"{len(data)} bytes",
            file=file,
            field=what,
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise ValueError(f"the key {key[:80]!r} occurs twice")
                seen.add(key)
        return result

    def constant(name: str) -> Any:
        raise ValueError(f"the constant {name} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{file}: {what} is not valid JSON: {error}", file=file, field=what
        ) from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file of at most limit bytes."""
    size = regular_size(path)
    if size > limit:
        raise FormatError(f"{path}: {size} bytes, expected at most {limit}", file=str(path))
    value = parse_json(path.read_bytes(), path.name, str(path))
    if not isinstance(value, dict):
        raise FormatError(
            f"{path}: expected a JSON object, found {type(value).__name__}", file=str(path)
        )
    return value


def read_json_if_there(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """read_json, or None where there is no such file."""
    return read_json(path, limit) if path.exists() else None
