"""Lines as wide as the terminal, broken between words; columns of tables stay where they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SGR = re.compile(r"\x1b\[[\d;]*m")
_LEAST = 16  # columns; in fewer the terminal itself breaks lines


def text_width(text: str) -> int:
    """Columns that a text takes on a terminal; sequences that set colours take none."""
    plain = _SGR.sub("", text)
    if plain.isascii():
        return len(plain)
    from rich.cells import cell_len

    return cell_len(plain)


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` columns; 0 leaves it as it is.

    What is broken off a line goes under its last column, where two spaces begin one, or under its first word.
    A word that is wider than the line stays whole.
    """
    if width < _LEAST:
        return text
    return "\n".join(part for line in text.split("\n") for part in _lines(line, width))


def joined(parts: Sequence[str], between: str, width: int) -> str:
    """The parts with `between` between them, in lines of at most `width` columns; 0 gives one line."""
    lines: list[str] = []
    for i, part in enumerate(parts):
        text = part + (between if i + 1 < len(parts) else "")
        fits = lines and text_width((lines[-1] + text).rstrip()) <= width
        if lines and (width < _LEAST or fits):
            lines[-1] += text
        else:
            lines.append(text)
    return wrapped("\n".join(line.rstrip() for line in lines), width)


def _lines(line: str, width: int) -> list[str]:
    if text_width(line) <= width:
        return [line]
    indent = " " * _hanging(line, width)
    out: list[str] = []
    now = ""
    for space, word in re.findall(r"(\s*)(\S+)", line):
        if now.strip() and text_width(now + space + word) > width:
            out.append(now)
            now = indent + word
        else:
            now += space + word
    return [*out, now]


def _hanging(line: str, width: int) -> int:
    """Where the line's last column begins, if that leaves room to write in; else its first word's place."""
    first = len(line) - len(line.lstrip())
    gaps = [m.end() for m in re.finditer(r"(?<=\S)  +(?=\S)", line)]
    starts = [text_width(line[:at]) for at in gaps]
    most = width * 3 // 5
    return max((s for s in starts if s <= most), default=min(first, most))
