"""The values of a layer's experts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import DType, F32Array, to_float32, to_float64
from .srde_layer import SrdeLayer

CHUNK = 1 << 14  # positions at a time, so that the partial sums stay in the cache
_CHECKED = 1 << 20


def expert_values(layer: SrdeLayer, order: NDArray[np.int64], n_threads: int) -> F32Array:
    """v_e = (softmax(expert_atom_weights[e]) @ atoms) * sigmoid(importance_e).

    Computed in float64 and rounded once. The sum over the atoms runs in their order, so that the
    bytes do not depend on the number of threads or on a BLAS.

    Args:
        order: [n], the checkpoint's columns in the order in which the result holds them.

    Returns:
        float32 [E, n].

    Raises:
        FormatError: a value is not finite; names the tensor that is to blame.
    """
    mix = layer.mix.float64()
    if not np.isfinite(mix).all():
        raise layer.bad("vocabulary.expert_atom_weights", "holds NaN or infinity")
    mix = np.exp(mix - mix.max(axis=1, keepdims=True))
    mix /= mix.sum(axis=1, keepdims=True)
    atoms = layer.atoms.raw()
    importance = [t.raw() for t in layer.importance]
    out = np.empty((len(importance), layer.n), np.float32)

    def chunk(start: int) -> None:
        columns = order[start : start + CHUNK]
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.zeros((len(importance), columns.size))
            for a in range(atoms.shape[0]):
                total += mix[:, a : a + 1] * to_float64(atoms[a][columns], layer.atoms.dtype)
            for e, tensor in enumerate(layer.importance):
                total[e] /= 1.0 + np.exp(-to_float64(importance[e][columns], tensor.dtype))
            out[:, start : start + CHUNK] = total

    with ThreadPoolExecutor(max(1, n_threads)) as pool:
        for _ in pool.map(chunk, range(0, layer.n, CHUNK)):
            pass
    if not np.isfinite(out).all():
        _blame(layer, out)
    return out


def check_finite(layer: SrdeLayer) -> None:
    """Looks at every atom and importance, in less time than it takes to compute the values.

    Raises:
        FormatError: an atom is NaN or infinite, or an importance NaN; names the tensor.
    """
    for e, tensor in enumerate(layer.importance):
        if any(np.isnan(piece).any() for piece in _pieces(tensor.raw(), tensor.dtype)):
            raise layer.bad(f"experts.{e}.importance", "holds NaN")
    for row in layer.atoms.raw():
        if not all(np.isfinite(piece).all() for piece in _pieces(row, layer.atoms.dtype)):
            raise layer.bad("vocabulary.atoms", "holds NaN or infinity")


def _pieces(raw: NDArray[Any], dtype: DType) -> Iterator[F32Array]:
    """A stored vector as float32, some at a time."""
    for i in range(0, len(raw), _CHECKED):
        yield to_float32(raw[i : i + _CHECKED], dtype)


def _blame(layer: SrdeLayer, values: F32Array) -> None:
    if not np.isfinite(layer.atoms.float32()).all():
        raise layer.bad("vocabulary.atoms", "holds NaN or infinity")
    expert = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
    raise layer.bad(f"experts.{expert}.importance", "gives values that are NaN or infinite")


def router_weights(layer: SrdeLayer) -> F32Array:
    """The router, float32 [E, H].

    Raises:
        FormatError: a weight is not finite.
    """
    weights = np.ascontiguousarray(layer.router.float32())
    if not np.isfinite(weights).all():
        raise layer.bad("router.gate.weight", "holds NaN or infinity")
    return weights
