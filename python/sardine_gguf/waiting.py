"""A line on a terminal while something takes longer than a second: what, how much is done, for how long."""

from __future__ import annotations

import math
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from sardine_gguf.terminal import ERASE_LINE, clean_line, columns, moves_cursor


class Waiting:
    """Shows `text` and the seconds so far, from `after` seconds on, until it is left or stopped.

    How much is done stands between them once `progress` was told it. Off a terminal nothing is written.

    Args:
        text: what takes time.
        stream: None is standard error.
        after: seconds before the line appears.
        every: seconds between two updates.
    """

    def __init__(
        self, text: str, *, stream: TextIO | None = None, after: float = 1.0, every: float = 0.2
    ) -> None:
        self._stream = stream or sys.stderr
        self._text, self._after, self._every = clean_line(text), after, every
        self._part = ""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Waiting:
        if moves_cursor(self._stream):
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def progress(self, fraction: float) -> None:
        """Takes how much is done, 0.0 to 1.0; the next update shows it in whole per cent, rounded down."""
        self._part = f" {math.floor(100 * fraction)}%"

    def stop(self) -> None:
        """Takes the line away; nothing of it is written after this returns."""
        self._done.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _show(self) -> None:
        start = time.monotonic()
        wait = self._after
        while not self._done.wait(wait):
            line = f"{self._text}{self._part} {time.monotonic() - start:.0f} s"
            self._write(ERASE_LINE + line[: columns(self._stream) - 1])
            wait = self._every
        if wait is not self._after:
            self._write(ERASE_LINE)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone; who waits will notice
            self._done.set()
