"""Error compensation: what quantizing the base loses at the experts' positions goes into the deltas.

The routing weights of a token sum to 1, so a value added to every expert is added exactly once. With
W the base's weights, Q their quantized form as a reader sees it, and R = W - Q:

    residual   every expert's values carry R at the positions. No byte more, but only the mode sparse
               sees it.
    extracted  the weights at the positions are 0 while the base is quantized, so that they no longer
               stretch the block scales of their neighbours. R, now about W itself, is one more array
               beside the experts' (`shared`), which every mode adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import native, schema
from .arrays import F32Array
from .pack import flat_offset
from .positions import Positions, read_positions
from .srde_layer import SrdeLayer


@dataclass
class LayerPositions:
    """A layer's positions in rising order, read when they are first needed.

    Attributes:
        order: int64 [n], the checkpoint's columns in rising order of position.
        positions: int64 [n], rising.
    """

    layer: SrdeLayer
    hidden: int
    inner: int
    _held: tuple[NDArray[np.int64], Positions] | None = None

    @property
    def order(self) -> NDArray[np.int64]:
        """See the class."""
        return self._load()[0]

    @property
    def positions(self) -> Positions:
        """See the class."""
        return self._load()[1]

    def _load(self) -> tuple[NDArray[np.int64], Positions]:
        if self._held is None:
            found = read_positions(self.layer, self.hidden, self.inner)
            order = np.argsort(found)
            self._held = order, found[order]
        return self._held

    def within(self, matrix: str) -> Positions:
        """Row-major positions within one matrix, rising."""
        start = flat_offset(matrix, self.hidden, self.inner)
        low, high = np.searchsorted(self.positions, [start, start + self.hidden * self.inner])
        return self.positions[low:high] - start

    def release(self) -> None:
        """Forgets the arrays; they are read again if they are needed again."""
        self._held = None


@dataclass
class MatrixRepair:
    """Follows one base matrix through its quantization and keeps what is lost at the positions.

    For each chunk of rows: before() with the weights, then after() with their quantized bytes.
    """

    matrix: str
    method: str
    at: LayerPositions
    _flat: Positions | None = None
    _loss: F32Array | None = None
    _chunk: tuple[slice, NDArray[np.int64]] = field(default=(slice(0), np.empty(0, np.int64)))

    def before(self, first_row: int, rows: F32Array) -> F32Array:
        """Notes the weights [r, n_cols] at the positions; returns the rows to quantize."""
        if self._flat is None:
            self._flat = self.at.within(self.matrix)
            self._loss = np.empty(len(self._flat), np.float32)
        assert self._loss is not None
        start = first_row * rows.shape[1]
        low, high = np.searchsorted(self._flat, [start, start + rows.size])
        here = self._flat[low:high] - start
        self._chunk = slice(int(low), int(high)), here
        self._loss[low:high] = rows.reshape(-1)[here]
        if self.method == "extracted":
            rows = rows.copy()
            rows.reshape(-1)[here] = 0.0
        return rows

    def after(
        self, data: NDArray[Any], ggml_type: schema.GgmlType, n_cols: int, threads: int
    ) -> None:
        """Subtracts what the bytes of the same rows mean."""
        assert self._loss is not None
        span, here = self._chunk
        if here.size:
            raw = data.reshape(-1).view(np.uint8).reshape(-1, ggml_type.row_bytes(n_cols))
            meant = native.dequantize(raw, ggml_type.name, n_cols, threads)
            self._loss[span] -= meant.reshape(-1)[here]

    def take(self) -> F32Array:
        """R at the positions in rising order, float32 [n]; the matrix must be written by now."""
        if self._loss is None:
            raise RuntimeError(f"{self.matrix}: its deltas were written before the matrix itself")
        loss, self._loss, self._flat = self._loss, None, None
        return loss


@dataclass
class LayerRepair:
    """The three matrices of a layer, and the type of the shared part (for `extracted`)."""

    method: str
    shared_type: str
    matrices: dict[str, MatrixRepair]

    def take(self, matrix: str) -> tuple[F32Array | None, F32Array | None]:
        """What a matrix lost, in rising order: to add to every expert, or for the shared part."""
        lost = self.matrices[matrix].take()
        return (None, lost) if self.method == "extracted" else (lost, None)


def layer_repair(method: str, shared_type: str, at: LayerPositions) -> LayerRepair:
    """A fresh repair for one layer; method is residual or extracted."""
    return LayerRepair(
        method, shared_type, {m: MatrixRepair(m, method, at) for m in schema.MATRICES}
    )
