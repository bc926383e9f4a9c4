"""The values of a layer's experts, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import DTYPES, F32Array, to_float64
from .file_tensor import LARGEST, Extremes, FileTensor, extremes
from .srde_layer import ATOMS, MIX, ROUTER, SrdeLayer

CHUNK = 1 << 14  # positions at a time, so that the partial sums stay in the cache
READ_BYTES = 32 << 20  # of atoms and importance at a time
_COMPARED = 1 << 17


def expert_values(layer: SrdeLayer, order: NDArray[np.int64], n_threads: int) -> F32Array:
    """v_e = (softmax(expert_atom_weights[e]) @ atoms) * sigmoid(importance_e).

    Computed in float64 and rounded once. The sum over the atoms runs in their order, so that the
    bytes do not depend on the number of threads or on a BLAS. The file is read once from the first
    column to the last.

    Args:
        order: [n], the checkpoint's columns in the order in which the result holds them.

    Returns:
        float32 [E, n].

    Raises:
        FormatError: a value is not finite; names the tensor that is to blame.
    """
    mix, tensors = mixture(layer), (layer.atoms, *layer.importance)
    for tensor in tensors:
        tensor.verify()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    out = np.empty((len(layer.importance), layer.n), np.float32)
    width = sum(t.dtype.size for t in layer.importance) + len(mix.T) * layer.atoms.dtype.size
    step = max(CHUNK, READ_BYTES // width)
    with ThreadPoolExecutor(max(1, n_threads)) as pool:
        for first in range(0, layer.n, step):
            stop = min(layer.n, first + step)
            atoms, *importance = (tensor.block(first, stop) for tensor in tensors)

            def chunk(
                start: int,
                place: NDArray[np.int64] = place[first:stop],
                atoms: NDArray[Any] = atoms,
                importance: list[NDArray[Any]] = importance,
            ) -> None:
                columns = slice(start, start + CHUNK)
                with np.errstate(over="ignore", invalid="ignore"):
                    total = np.zeros((len(importance), len(atoms[0, columns])))
                    for a, row in enumerate(atoms):
                        total += mix[:, a : a + 1] * to_float64(row[columns], layer.atoms.dtype)
                    for e, tensor in enumerate(layer.importance):
                        total[e] /= 1.0 + np.exp(-to_float64(importance[e][columns], tensor.dtype))
                    out[:, place[columns]] = total

            for _ in pool.map(chunk, range(0, stop - first, CHUNK)):
                pass
    if not np.isfinite(out).all():
        _blame(layer, out)
    return out


def mixture(layer: SrdeLayer) -> NDArray[np.float64]:
    """softmax(expert_atom_weights), float64 [E, A].

    Raises:
        FormatError: a weight is not finite.
    """
    mix = layer.mix.float64()
    if not np.isfinite(mix).all():
        raise layer.bad(MIX, "holds NaN or infinity")
    mix = np.exp(mix - mix.max(axis=1, keepdims=True))
    out: NDArray[np.float64] = mix / mix.sum(axis=1, keepdims=True)
    return out


def check_values(layer: SrdeLayer, delta_type: str) -> None:
    """Reads everything but the positions once, before anything is written: checksums and numbers.

    Takes less time than computing the values, which is only done where an atom is too large, and no
    memory that grows with them.

    Raises:
        FormatError: an atom, a weight of the mixture or of the router is NaN or infinite, an
            importance is NaN, an expert's copy of the vocabulary differs, or a value is beyond
            LARGEST and delta_type is f16; names the tensor.
    """
    router_weights(layer)
    mixture(layer)
    for e, tensor in enumerate(layer.importance):
        if tensor.extremes().nan:
            raise layer.bad(f"experts.{e}.importance", "holds NaN")
    atoms = _look(layer, ATOMS, layer.atoms)
    if not atoms.finite:
        raise layer.bad(ATOMS, "holds NaN or infinity")
    _look(layer, MIX, layer.mix)
    # A value is a part of a mean of atoms, so that only large atoms can make one that is too large.
    if atoms.large and delta_type == "f16":
        _check_magnitude(layer)


def _check_magnitude(layer: SrdeLayer) -> None:
    values = expert_values(layer, np.arange(layer.n), 1)
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))
    expert = int(largest.argmax())
    if largest[expert] > LARGEST:
        raise layer.bad(
            f"experts.{expert}",
            f"has a value of magnitude {largest[expert]:g}, expected at most {LARGEST:g}, F16's "
            "largest and far beyond any weight: the checkpoint is damaged, or use --delta-type f32",
        )


def _look(layer: SrdeLayer, key: str, tensor: FileTensor) -> Extremes:
    """What is in a tensor, compared on the way with the copies of it that are stored apart."""
    copies = {name: copy for name, (of, copy) in layer.copies.items() if of == key}
    if not copies:
        return tensor.extremes()
    found = Extremes()
    streams = {name: _stream(copy) for name, copy in copies.items()}
    for values in _stream(tensor):
        for name, stream in streams.items():
            if not np.array_equal(next(stream), values):
                raise layer.bad(name, f"differs from {key}, expected the same values")
        found |= extremes(values, DTYPES["f64"])
    for stream in streams.values():
        next(stream, None)  # to the checksum behind the last value
    return found


def _stream(tensor: FileTensor) -> Iterator[NDArray[np.float64]]:
    """All values in row-major order, _COMPARED at a time whatever the stored type."""
    held = np.empty(0)
    for piece in tensor.pieces():
        for i in range(0, piece.size, _COMPARED):
            held = np.concatenate([held, to_float64(piece[i : i + _COMPARED], tensor.dtype)])
            while held.size >= _COMPARED:
                yield held[:_COMPARED]
                held = held[_COMPARED:]
    if held.size:
        yield held


def _blame(layer: SrdeLayer, values: F32Array) -> None:
    if not layer.atoms.extremes().finite:
        raise layer.bad(ATOMS, "holds NaN or infinity")
    expert = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
    raise layer.bad(f"experts.{expert}.importance", "gives values that are NaN or infinite")


def router_weights(layer: SrdeLayer) -> F32Array:
    """The router, float32 [E, H].

    Raises:
        FormatError: a weight is not finite.
    """
    weights = np.ascontiguousarray(layer.router.float32())
    if not np.isfinite(weights).all():
        raise layer.bad(ROUTER, "holds NaN or infinity")
    return weights
