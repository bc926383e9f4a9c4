"""Text files that a person names: prompts, system messages, grammars, schemas, templates."""

from __future__ import annotations

import sys
from pathlib import Path

from sardine_gguf.errors import FormatError

LIMIT = 64 << 20


def read_text_file(path: str | Path, *, limit: int = LIMIT) -> str:
    """The text of a file, `-` being standard input.

    Raises:
        FormatError: it is not UTF-8, or larger than `limit` bytes.
        OSError: it cannot be read.
        ValueError: the path contains a null byte.
    """
    if str(path) == "-":
        return sys.stdin.read()
    with open(path, "rb") as file:  # noqa: PTH123 (also /dev/stdin)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{path}: more than {limit >> 20} MiB of text", file=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FormatError(
            f"{path}: byte {e.start} is not UTF-8: expected a text file", file=str(path)
        ) from None
