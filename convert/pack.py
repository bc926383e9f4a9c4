"""Positions and values of a matrix <-> the packed arrays of docs/format.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import F32Array
from .schema import MATRICES, MAX_BLOCK_COLUMNS, MAX_POSITIONS, matrix_shape


@dataclass(frozen=True)
class Packed:
    """The index structure of one matrix.

    Attributes:
        row_ptr: int32 [B * n_rows + 1]; col: uint16 [n], the column within its block.
    """

    n_rows: int
    n_cols: int
    block_columns: int
    row_ptr: NDArray[np.int32]
    col: NDArray[np.uint16]


def split(positions: NDArray[np.int64], hidden: int, inner: int) -> dict[str, NDArray[np.int64]]:
    """For each matrix, which of the flat positions [n] lie in it (their numbers, rising)."""
    size = hidden * inner
    which = positions // size
    return {m: np.flatnonzero(which == i) for i, m in enumerate(MATRICES)}


def count(positions: NDArray[np.int64], hidden: int, inner: int) -> dict[str, int]:
    """How many of the flat positions lie in each matrix."""
    size = hidden * inner
    up, down = (int(np.count_nonzero(positions >= i * size)) for i in (1, 2))
    return {"gate": len(positions) - up, "up": up - down, "down": down}


def flat_offset(matrix: str, hidden: int, inner: int) -> int:
    """The flat position of the matrix's first element."""
    return MATRICES.index(matrix) * hidden * inner


def pack(
    flat: NDArray[np.int64], n_rows: int, n_cols: int, block_columns: int
) -> tuple[Packed, NDArray[np.int64]]:
    """Sorts positions within a matrix by block, row and column.

    Args:
        flat: [n] unique row-major positions within the matrix, in any order.
        block_columns: C, 1 to 65536.

    Returns:
        The index structure, and the order [n] that sorts flat (and values along with it).
    """
    if not 1 <= block_columns <= MAX_BLOCK_COLUMNS:
        raise ValueError(f"block_columns: expected 1 to {MAX_BLOCK_COLUMNS}, got {block_columns}")
    if len(flat) > MAX_POSITIONS:
        raise ValueError(f"{len(flat)} positions in a matrix, expected at most {MAX_POSITIONS}")
    n_blocks = -(-n_cols // block_columns)
    row, column = np.divmod(flat, n_cols)
    block, column = np.divmod(column, block_columns)
    row += block * n_rows  # the number of the compressed row
    order = np.argsort(row * block_columns + column)
    counts = np.bincount(row, minlength=n_blocks * n_rows)
    row_ptr = np.zeros(n_blocks * n_rows + 1, np.int32)
    np.cumsum(counts, out=row_ptr[1:])
    return Packed(n_rows, n_cols, block_columns, row_ptr, column[order].astype(np.uint16)), order


def unpack(packed: Packed) -> NDArray[np.int64]:
    """Row-major positions [n] within the matrix, in packed order: the inverse of pack."""
    compressed = np.repeat(
        np.arange(len(packed.row_ptr) - 1, dtype=np.int64), np.diff(packed.row_ptr)
    )
    block, row = np.divmod(compressed, packed.n_rows)
    flat: NDArray[np.int64] = row * packed.n_cols + block * packed.block_columns + packed.col
    return flat


def value_scale(values: F32Array, delta_type: str) -> F32Array:
    """The power of two of each expert, float32 [E], for values [E, n].

    max |v| / scale lies in [2^10, 2^11), far from both ends of F16; 1 for F32 and for an expert
    whose values are all zero.
    """
    scale = np.ones(values.shape[0], np.float32)
    if delta_type == "f32" or values.shape[1] == 0:
        return scale
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    exponent = np.maximum(np.frexp(largest)[1] - 11, -126)  # a normal float32 at least
    return np.where(largest > 0, np.ldexp(np.float32(1), exponent), scale).astype(np.float32)


def flat_positions(packed: Packed, matrix: str, hidden: int, inner: int) -> NDArray[np.int64]:
    """unpack, as positions within the layer."""
    assert (packed.n_rows, packed.n_cols) == matrix_shape(matrix, hidden, inner)
    return unpack(packed) + flat_offset(matrix, hidden, inner)
