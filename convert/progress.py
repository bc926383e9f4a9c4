"""How far a conversion is, for people: a bar on a terminal, a line each tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from .conversion import Progress
from .report import human

# Files below this size are written without lines: they take seconds.
QUIET_BYTES = 1 << 30

_PHASES = {"reading": "1/2 reading", "writing": "2/2 writing"}


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
        text = f"{_PHASES.get(phase, phase)} {what}"
        shown.update(task, completed=done, total=total, description=f"{text[:40]:40}")

    return update, shown.stop


def lines() -> Progress:
    """Lines on standard error for files of QUIET_BYTES and more: each tenth, rate and time left."""
    started, tenth = time.monotonic(), 0

    def update(phase: str, done: int, total: int, what: str) -> None:
        nonlocal started, tenth
        if phase != "writing" or total < QUIET_BYTES:
            started = time.monotonic()
            return
        if 10 * done // total > tenth:
            tenth = 10 * done // total
            seconds = max(time.monotonic() - started, 1e-3)
            left = seconds * (total - done) / done
            print(
                f"{10 * tenth} %: {human(done)} of {human(total)}, "
                f"{human(int(done / seconds))}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    return update
