"""Numbers as people read them."""

from __future__ import annotations


def size_text(n: int) -> str:
    """A number of bytes with three digits or more, in decimal units."""
    size = float(n)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{n} {unit}" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def count_text(n: int, thing: str) -> str:
    """ "1 turn", "2 turns", "1,200 turns"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
