"""Text files that a person names: prompts, system messages, grammars, schemas, templates."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from sardine_gguf.errors import FormatError

LIMIT = 64 << 20


def read_text_file(path: str | Path, *, limit: int = LIMIT) -> str:
    """The text of a file, `-` being standard input, whose line ends become \\n.

    Raises:
        FormatError: it is not UTF-8, or larger than `limit` bytes.
        OSError: it cannot be read.
        ValueError: the path contains a null byte.
    """
    standard = str(path) == "-"
    name = "standard input" if standard else str(path)
    if standard:
        data = _standard_input(limit + 1)
    else:
        with open(path, "rb") as file:  # noqa: PTH123 (also /dev/stdin)
            data = file.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{name}: more than {limit >> 20} MiB of text", file=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FormatError(
            f"{name}: byte {e.start} is not UTF-8: expected a text file", file=name
        ) from None
    return text.replace("\r\n", "\n") if standard else text


def _standard_input(size: int) -> bytes:
    """At most `size` bytes of it."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        data: bytes = sys.stdin.buffer.read(size)
        return data
    text: str = sys.stdin.read(size)  # another object that Python code put there
    return text.encode("utf-8", "replace")
