"""The positions of a layer: which FFN parameters its experts change."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .srde_layer import SrdeLayer

Positions = NDArray[np.int64]


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
    positions = layer.indices.raw().astype(np.int64)
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
    assert layer.mask_logits is not None
    logits = layer.mask_logits.float32()
    if np.isnan(logits).any():
        raise layer.bad("mask_selector.mask_logits", "holds NaN")
    if n == 0:
        return np.empty(0, np.int64)
    least = np.partition(logits, logits.size - n)[logits.size - n]
    above = np.flatnonzero(logits > least)
    equal = np.flatnonzero(logits == least)[: n - above.size]
    chosen = np.sort(np.concatenate([above, equal]))
    return chosen[np.argsort(-logits[chosen], kind="stable")]
