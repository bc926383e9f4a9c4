"""How far a conversion is, for people: a bar on a terminal, a line each tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from sardine_gguf.units import size_text

from .report import one_line
from .writer import Progress

# Files below this size are written without lines: they take seconds.
QUIET_BYTES = 1 << 30


def bar() -> tuple[Progress, Callable[[], None]]:
    """A bar with rate and time left on standard error; and what removes it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    shown = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = shown.add_task("", total=None)
    current = ""

    def update(phase: str, done: int, total: int, what: str) -> None:
        nonlocal current
        shown.start()
        if phase != current:  # another rate
            shown.reset(task, total=total, completed=done)
            current = phase
        text = one_line(f"{phase} {what}")
        shown.update(task, completed=done, total=total, description=f"{text[:40]:40}")

    return update, shown.stop


def lines() -> Progress:
    """A line on standard error for each tenth of a phase of QUIET_BYTES and more, with rate and time left."""
    started, tenth, current = 0.0, 0, ""

    def update(phase: str, done: int, total: int, what: str) -> None:
        nonlocal started, tenth, current
        if phase != current:
            started, tenth, current = time.monotonic(), 0, phase
        if total >= QUIET_BYTES and 10 * done // total > tenth:
            tenth = 10 * done // total
            seconds = max(time.monotonic() - started, 1e-3)
            left = seconds * (total - done) / done
            print(
                f"{phase} {10 * tenth} %: {size_text(done)} of {size_text(total)}, "
                f"{size_text(int(done / seconds))}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    return update
