"""Keys that are pressed while an answer is written: kept for the next prompt, as by a shell, not shown."""

from __future__ import annotations

import contextlib
import termios
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def quiet_keys(stdin: TextIO) -> Iterator[None]:
    """While it is open a terminal does not show what is typed. Keys that send signals, as Ctrl-C, still do.

    Who reads next, without lines, gets the keys one by one: Enter as Enter, Ctrl-D as Ctrl-D.
    """
    try:
        fd = stdin.fileno()
        before = termios.tcgetattr(fd)
    except (OSError, ValueError, termios.error):  # no terminal: there is nothing to hide
        yield
        return
    quiet = [*before[:6], list(before[6])]
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    _set(fd, quiet)
    try:
        yield
    finally:
        _set(fd, before)


def _set(fd: int, attributes: list[Any]) -> None:
    # The terminal may be gone; who writes to it next will notice.
    with contextlib.suppress(OSError, termios.error):
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
