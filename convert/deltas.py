"""The tensors that one augmented layer adds to the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import native, schema
from .arrays import F32Array
from .compensation import LayerPositions, LayerRepair, layer_repair
from .gguf_file import TensorSpec, as_bytes, padded, spec
from .pack import count, flat_offset, pack, split, value_scale
from .positions import read_positions
from .srde_layer import SrdeLayer
from .values import expert_values, router_weights


@dataclass(frozen=True)
class DeltaPart:
    """Makes the tensors of a layer while they are written; holds one layer's values at most.

    counts: positions in gate, up and down, which decide the tensors' sizes. With a repair the
    layer's base matrices must be written before.
    """

    layer: SrdeLayer
    at: LayerPositions
    counts: dict[str, int]
    hidden: int
    inner: int
    block_columns: int
    delta_type: str
    n_threads: int
    repair: LayerRepair | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Router, mean, and four tensors for each matrix with positions."""
        i, n_experts = self.layer.index, len(self.layer.importance)
        out = [
            spec(schema.router(i), schema.F32, self.hidden, n_experts),
            spec(schema.delta_mean(i), schema.F32, n_experts),
        ]
        value_type = schema.TYPES[self.delta_type]
        for matrix, n in self.counts.items():
            if n:
                n_rows, n_cols = schema.matrix_shape(matrix, self.hidden, self.inner)
                n_blocks = -(-n_cols // self.block_columns)
                out += [
                    spec(schema.delta(i, matrix, "row_ptr"), schema.I32, n_blocks * n_rows + 1),
                    spec(schema.delta(i, matrix, "col"), schema.I16, n),
                    spec(
                        schema.delta(i, matrix, "val"),
                        value_type,
                        padded(n, value_type.block),
                        n_experts,
                    ),
                    spec(schema.delta(i, matrix, "scale"), schema.F32, n_experts),
                ]
                if self.repair is not None and self.repair.method == "extracted":
                    shared_type = schema.TYPES[self.repair.shared_type]
                    n_stored = padded(n, shared_type.block)
                    out += [
                        spec(schema.delta(i, matrix, "shared"), shared_type, n_stored),
                        spec(schema.delta(i, matrix, "shared_scale"), schema.F32, 1),
                    ]
        return tuple(out)

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields the tensors in the order of specs.

        Raises:
            FormatError: a position, value or router weight cannot be used.
        """
        i = self.layer.index
        yield schema.router(i), as_bytes(router_weights(self.layer))
        # Everything below is in rising order of position, so that no byte of the file depends on
        # the order in the checkpoint.
        positions = self.at.positions
        values = expert_values(self.layer, self.at.order, self.n_threads)
        mean: NDArray[np.float32] = np.zeros(values.shape[0], np.float32)
        if positions.size:
            mean = values.mean(axis=1, dtype=np.float64).astype(np.float32)
        yield schema.delta_mean(i), as_bytes(mean)
        for matrix, members in split(positions, self.hidden, self.inner).items():
            if not members.size:
                continue
            n_rows, n_cols = schema.matrix_shape(matrix, self.hidden, self.inner)
            flat = positions[members] - flat_offset(matrix, self.hidden, self.inner)
            packed, inner_order = pack(flat, n_rows, n_cols, self.block_columns)
            mine = values[:, members[inner_order]]
            added, shared = self.repair.take(matrix) if self.repair else (None, None)
            if added is not None:
                mine += added[inner_order]
            scale = value_scale(mine, self.delta_type)
            yield schema.delta(i, matrix, "row_ptr"), as_bytes(packed.row_ptr)
            yield schema.delta(i, matrix, "col"), as_bytes(packed.col)
            yield (
                schema.delta(i, matrix, "val"),
                as_bytes(self._encode(mine, scale, self.delta_type)),
            )
            yield schema.delta(i, matrix, "scale"), as_bytes(scale)
            if shared is not None and self.repair is not None:
                common, kind = shared[None, inner_order], self.repair.shared_type
                scale = value_scale(common, kind)
                data = as_bytes(self._encode(common, scale, kind))
                yield schema.delta(i, matrix, "shared"), data
                yield schema.delta(i, matrix, "shared_scale"), as_bytes(scale)
        self.at.release()

    def _encode(self, values: F32Array, scale: F32Array, kind: str) -> NDArray[Any]:
        """Values [E, n] divided by their scale, in one of the value types."""
        if kind == "f32":
            return np.ascontiguousarray(values)
        if kind == "f16":
            return (values / scale[:, None]).astype("<f2")
        n = padded(values.shape[1], schema.Q8_0.block)
        rows = np.zeros((values.shape[0], n), np.float32)
        np.divide(values, scale[:, None], out=rows[:, : values.shape[1]])
        return native.quantize(rows, "q8_0", self.n_threads)


def delta_part(
    layer: SrdeLayer,
    hidden: int,
    inner: int,
    block_columns: int,
    delta_type: str,
    n_threads: int,
    compensation: str = "none",
    shared_type: str = "f16",
) -> DeltaPart:
    """A layer's part; reads its positions to know how many lie in each matrix.

    Raises:
        FormatError: see read_positions.
    """
    at = LayerPositions(layer, hidden, inner)
    counts = count(read_positions(layer, hidden, inner), hidden, inner)
    repair = None
    if compensation != "none":
        repair = layer_repair(compensation, shared_type, at)
    return DeltaPart(layer, at, counts, hidden, inner, block_columns, delta_type, n_threads, repair)
