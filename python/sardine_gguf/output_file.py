"""Results that appear complete or not at all, and replace those of before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Refuses a destination before any work is done.

    Raises:
        FormatError: it is a folder, a device or one of the inputs.
        OSError: its folder does not exist.
    """
    from sardine_gguf.convert.atomic import (  # type: ignore[import-untyped,unused-ignore]
        check_destination,
    )

    check_destination(path, [p for p in inputs if p.exists()], force=True)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file in the place of any before.

    Raises:
        OSError: it cannot be written.
    """
    from sardine_gguf.convert.atomic import (  # type: ignore[import-untyped,unused-ignore]
        AtomicFile,
        sweep,
    )

    try:
        sweep(path)
        with AtomicFile(path) as out:
            out.write(data)
            out.commit(lambda _: None, force=True)
    except OSError as e:
        if e.filename is None:  # a failed write does not know its file
            e.filename = str(path)
        raise
