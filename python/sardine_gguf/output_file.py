"""Results that appear complete or not at all, and replace those of before."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Refuses a destination before any work is done.

    Raises:
        FormatError: it is a folder, a device, a pipe or one of the inputs.
        OSError: its folder does not exist.
        ValueError: it is empty.
    """
    if str(path) in ("", "."):
        raise ValueError("the output's path is empty: name a file")
    from sardine_gguf.convert.atomic import (  # type: ignore[import-untyped,unused-ignore]
        check_destination,
    )

    check_destination(link_target(path), [p for p in inputs if p.exists()], force=True)


def link_target(path: Path) -> Path:
    """The file that a symbolic link names, there or not; another path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def same_file(a: str, b: str) -> bool:
    """True where two names are of one regular file, or of one that does not exist yet."""
    try:
        first, second = Path(a).stat(), Path(b).stat()
    except (OSError, ValueError):
        return os.path.realpath(a) == os.path.realpath(b)
    return os.path.samestat(first, second) and stat.S_ISREG(first.st_mode)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Callable[[Any], None]]:
    """Gives a function that appends bytes to a file, which takes the place of any before at the end.

    Of a symbolic link the file that it names is written, and the link stays.

    Raises:
        OSError: it cannot be written.
    """
    from sardine_gguf.convert.atomic import (  # type: ignore[import-untyped,unused-ignore]
        AtomicFile,
        sweep,
    )

    path = link_target(path)
    try:
        sweep(path)
        with AtomicFile(path) as out:
            yield out.write
            out.commit(lambda _: None, force=True)
    except OSError as e:
        if e.filename is None:  # a failed sync does not know its file
            e.filename = str(path)
        raise
