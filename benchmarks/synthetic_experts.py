"""Random experts at the speed of memory: masks by their statistics instead of by sorting weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.convert import schema
from sardine_gguf.convert.gguf_file import TensorSpec, as_bytes, padded, spec

MASKS = ("random", "heavy")
_POOL = 1 << 20
_DISTINCT = 4  # layers with masks of their own; the others repeat them
# Which part of a layer's positions a matrix has, times three; heavy: magnitudes differ between them.
_SHARES = {"random": (1.0, 1.0, 1.0), "heavy": (1.3, 1.2, 0.5)}


def _scales(mask: str, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How likely each row or column is to hold positions, relative to the mean.

    Heavy: weights of a Student t of 5 degrees of freedom times log-normal scales of sigma 0.15, so that the
    chance to be among the largest goes with the scale's fifth power; and one row or column in
    a thousand with 16 times the chance, as outlier channels have it.
    """
    if mask == "random":
        return np.ones(n)
    chance = np.exp(5 * 0.15 * rng.standard_normal(n))
    chance[rng.integers(0, n, max(1, n // 1000))] *= 16
    return chance / chance.mean()


def positions(
    mask: str, n_rows: int, n_cols: int, n: int, block: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """row_ptr and col of n random positions (docs/format.md).

    Args:
        mask: "random", uniform; "heavy", a product distribution of uneven rows and columns.
        block: columns of a block.
    """
    per_row = n * _scales(mask, n_rows, rng) / n_rows
    # A column is drawn by a table in which it has places by its chance.
    chance = _scales(mask, n_cols, rng)
    table = np.searchsorted(np.cumsum(chance), (np.arange(1 << 18) + 0.5) * n_cols / (1 << 18))
    table = np.minimum(table, n_cols - 1).astype(np.uint32)
    rows = np.arange(n_rows, dtype=np.uint64)
    keys = np.empty(0, np.uint64)
    while len(keys) < n:  # what was drawn twice counts once
        wanted = rng.poisson(per_row * (n - len(keys)) / n * 1.01 + 1e-3)
        row = np.repeat(rows, np.minimum(wanted, n_cols))
        if mask == "random":
            col = rng.integers(0, n_cols, len(row), np.uint32)
        else:
            col = table[rng.integers(0, len(table), len(row), np.uint32)]
        new = (col // block * n_rows + row) << 16 | col % block
        keys = np.concatenate([keys, new])
        keys.sort()
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    if len(keys) > n:
        keys = np.delete(keys, rng.choice(len(keys), len(keys) - n, replace=False))
    n_blocks = -(-n_cols // block)
    row_ptr = np.zeros(n_blocks * n_rows + 1, np.int32)
    np.cumsum(
        np.bincount((keys >> 16).astype(np.int64), minlength=len(row_ptr) - 1), out=row_ptr[1:]
    )
    return row_ptr, (keys & 0xFFFF).astype(np.uint16)


@functools.lru_cache(3 * _DISTINCT)
def layer_positions(
    layer: int, mask: str, n_rows: int, n_cols: int, n: int, block: int, matrix: str
) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """The positions of one matrix of a layer."""
    rng = np.random.default_rng([layer % _DISTINCT, schema.MATRICES.index(matrix)])
    return positions(mask, n_rows, n_cols, n, block, rng)


def value_pool(kind: str, seed: int = 0) -> NDArray[np.uint8]:
    """Bytes of 1 Mi random values: normal, of a standard deviation of 400, as the converter scales them."""
    from sardine_gguf.convert import native

    values = np.random.default_rng(seed).standard_normal((1, _POOL), np.float32) * np.float32(400)
    if kind == "q8_0":
        return native.quantize(values, kind, 1).reshape(-1)
    return values.astype(np.float16 if kind == "f16" else np.float32).view(np.uint8).reshape(-1)


@dataclass(frozen=True)
class RandomExperts:
    """The tensors of one augmented layer, as a Part of the writer (sardine_gguf.convert.gguf_file)."""

    layer: int
    hidden: int
    inner: int
    density: float
    n_experts: int
    mask: str
    block: int
    kind: str
    pool: NDArray[np.uint8]

    def _counts(self) -> dict[str, int]:
        size = self.hidden * self.inner * self.density
        return {
            m: round(size * s) for m, s in zip(schema.MATRICES, _SHARES[self.mask], strict=True)
        }

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Router, mean, and four tensors for each matrix."""
        out = [
            spec(schema.router(self.layer), schema.F32, self.hidden, self.n_experts),
            spec(schema.delta_mean(self.layer), schema.F32, self.n_experts),
        ]
        value_type = schema.TYPES[self.kind]
        for matrix, n in self._counts().items():
            rows, cols = schema.matrix_shape(matrix, self.hidden, self.inner)
            name = [schema.delta(self.layer, matrix, p) for p in ("row_ptr", "col", "val", "scale")]
            out += [
                spec(name[0], schema.I32, -(-cols // self.block) * rows + 1),
                spec(name[1], schema.I16, n),
                spec(name[2], value_type, padded(n, value_type.block), self.n_experts),
                spec(name[3], schema.F32, self.n_experts),
            ]
        return tuple(out)

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields the tensors in the order of specs."""
        rng = np.random.default_rng(1000 + self.layer)
        specs = {s.name: s for s in self.specs}
        router = rng.standard_normal((self.n_experts, self.hidden), np.float32)
        yield schema.router(self.layer), as_bytes(router * np.float32(0.02))
        yield (
            schema.delta_mean(self.layer),
            as_bytes(rng.standard_normal(self.n_experts).astype(np.float32) * np.float32(1e-3)),
        )
        for matrix, n in self._counts().items():
            rows, cols = schema.matrix_shape(matrix, self.hidden, self.inner)
            row_ptr, col = layer_positions(
                self.layer % _DISTINCT, self.mask, rows, cols, n, self.block, matrix
            )
            yield schema.delta(self.layer, matrix, "row_ptr"), as_bytes(row_ptr)
            yield schema.delta(self.layer, matrix, "col"), as_bytes(col)
            name = schema.delta(self.layer, matrix, "val")
            for piece in repeat(self.pool, specs[name].nbytes):
                yield name, piece
            scale = np.full(self.n_experts, 2.0**-18, np.float32)
            yield schema.delta(self.layer, matrix, "scale"), as_bytes(scale)


def repeat(pool: NDArray[np.uint8], n: int) -> Iterator[memoryview]:
    """n bytes in all: the pool, as often as it takes."""
    while n:
        piece = as_bytes(pool[: min(n, len(pool))])
        n -= len(piece)
        yield piece
