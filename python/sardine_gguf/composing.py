"""Messages of several lines: a backslash at a line's end, or triple quotes around them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

QUOTES = '"""'


def is_complete(text: str) -> bool:
    """Whether Enter sends what is typed, rather than beginning another line."""
    begin = text.lstrip()
    if begin.startswith(QUOTES):
        return QUOTES in begin[len(QUOTES) :]
    return not text.endswith("\\")


def message(text: str) -> str:
    """What is sent: the text, or what stands between triple quotes around all of it."""
    inner = text.strip()
    if inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES):
        return inner[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def simple_reader(
    *, multiline: bool = False, stdin: TextIO | None = None, err: TextIO | None = None
) -> Callable[[], str]:
    """Lines from standard input without editing, for pipes, limited consoles and --simple-io.

    Args:
        multiline: an empty line sends, not the end of each.
    """
    source, shown = stdin or sys.stdin, err or sys.stderr

    def read() -> str:
        text = ""
        begun = False
        while True:
            print("  " if begun else "> ", end="", file=shown, flush=True)
            line = source.readline()
            if not line:
                if begun and text.strip():
                    return message(text)
                raise EOFError
            line = line.rstrip("\r\n")
            text = f"{text}\n{line}" if begun else line
            begun = True
            quoted = text.lstrip().startswith(QUOTES)
            if not is_complete(text):
                if not quoted:
                    text = text[:-1]  # the backslash
                continue
            if multiline and not quoted and line.strip() and not text.lstrip().startswith("/"):
                continue
            return message(text)

    return read
