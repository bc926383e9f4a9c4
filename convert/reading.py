"""Reading parts of files into memory. Nothing is mapped, so that what was used does not stay resident."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .gguf_file import as_bytes

PIECE_BYTES = 8 << 20  # at a time, where a reader does not need other portions


def read_exactly(file: BinaryIO, view: memoryview, at: int, what: str) -> None:
    """Fills view with the bytes of an unbuffered file from `at` on.

    Raises:
        OSError: the file cannot be read, or ends within `what`.
    """
    while len(view):
        got = os.preadv(file.fileno(), [view], at)
        if got == 0:
            raise OSError(
                f"{file.name}: ends at byte {at} within {what}; "
                "was it changed during the conversion?"
            )
        view, at = view[got:], at + got


def read_columns(
    path: Path, dtype: str, place: int, shape: tuple[int, ...], stride: int, start: int, stop: int
) -> NDArray[Any]:
    """Columns [start, stop) of a vector or of a matrix whose rows are each in one piece.

    Args:
        place: byte of the first element; stride: elements from a row to the next one.

    Returns:
        [stop - start], or [rows, stop - start].
    """
    out = np.empty((*shape[:-1], stop - start), dtype)
    with path.open("rb", buffering=0) as file:
        for r, row in enumerate(out.reshape(-1, stop - start) if out.size else ()):
            at = place + (r * stride + start) * out.itemsize
            read_exactly(file, as_bytes(row), at, "a tensor")
    return out


def read_elements(path: Path, dtype: str, place: int, where: NDArray[np.int64]) -> NDArray[Any]:
    """A few single elements, by their numbers from byte `place` on."""
    out = np.empty(where.shape, dtype)
    flat = out.reshape(-1)
    with path.open("rb", buffering=0) as file:
        for i, element in enumerate(where.reshape(-1).tolist()):
            at = place + element * out.itemsize
            read_exactly(file, as_bytes(flat[i : i + 1]), at, "a tensor")
    return out
