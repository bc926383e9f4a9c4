"""The positions of a layer: which FFN parameters its experts change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .arrays import to_float32, to_float64
from .srde_layer import SrdeLayer

Positions = NDArray[np.int64]
Logits = NDArray[np.float32] | NDArray[np.float64]


def read_positions(layer: SrdeLayer, hidden: int, inner: int) -> Positions:
    """Flat positions [n], int64, in the checkpoint's order; unique and within [0, 3*I*H).

    Position p counts through gate_proj [I, H], up_proj [I, H] and down_proj [H, I], row-major.
    Early checkpoints have a logit for each parameter instead: then they are the n largest, in
    falling order, the lower index first among equals.

    Raises:
        FormatError: an index is out of range or occurs twice, or a logit is NaN.
    """
    total = 3 * hidden * inner
    if layer.mask_logits is not None:
        return _largest(layer, layer.n)
    assert layer.indices is not None
    positions, end = np.empty(layer.indices.shape, np.int64), 0
    for piece in layer.indices.pieces():
        positions[end : end + piece.size] = piece
        end += piece.size
    if positions.size:
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= total:
            raise layer.bad(
                "mask_selector.indices",
                f"the index {low if low < 0 else high} is outside of [0, {total})",
            )
        ordered = np.sort(positions)
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if twice.size:
            raise layer.bad(
                "mask_selector.indices", f"the index {int(ordered[twice[0]])} occurs twice"
            )
    return positions


def _largest(layer: SrdeLayer, n: int) -> Positions:
    logits = layer.mask_logits
    assert logits is not None

    # As stored: two f64 logits may be one f32. The others are f32 exactly.
    read = to_float64 if logits.dtype.name == "f64" else to_float32

    def chunks() -> Iterator[Logits]:
        for piece in logits.pieces():
            values = read(piece, logits.dtype)
            if np.isnan(values).any():
                raise layer.bad("mask_selector.mask_logits", "holds NaN")
            yield values

    return largest(chunks(), n)


def largest(chunks: Iterable[Logits], n: int) -> Positions:
    """Where the n largest of all values are, in falling order, the lower index first among equals.

    Holds n values and a chunk. No value may be NaN.
    """
    index, start = np.empty(0, np.int64), 0
    value: Logits = np.empty(0, np.float32)
    for chunk in chunks:
        # Of equals the earlier ones are better, so a full set only yields to what is larger.
        better = chunk > value.min() if n and value.size == n else np.full(chunk.size, n > 0)
        new = np.flatnonzero(better)
        index = np.concatenate([index, new + start])
        value = np.concatenate([value, chunk[new]])
        if value.size > n:
            least = np.partition(value, value.size - n)[value.size - n]
            equal = np.flatnonzero(value == least)
            spare = equal[n - np.count_nonzero(value > least) :]
            keep = value >= least
            keep[spare] = False
            index, value = index[keep], value[keep]
        start += chunk.size
    return index[np.argsort(-value, kind="stable")]
