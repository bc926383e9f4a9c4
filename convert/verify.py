"""--verify: a written file, unpacked by an independent reader, against the inputs it was made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.packed_file import MATRICES, PackedFile, PackedMatrix

from .arrays import F32Array
from .deltas import DeltaPart
from .gguf_file import Part, padded
from .values import expert_values, router_weights
from .verify_error import error_bounds
from .writer import Progress

CHUNK = 1 << 20  # values at a time; a multiple of Q8_0's block


class VerificationError(OSError):
    """A written file does not hold what its inputs say."""


@dataclass
class Verification:
    """What was compared, and the largest differences.

    Attributes:
        positions, values: how many; all positions were equal.
        largest_error: |stored - source| over all values; largest_share: the same over what the value's
            type allows there, at most 1 (0 for f32).
        base_tensors, base_bytes: compared byte for byte with the base, quantized again where it was.
        skipped: tensors that nothing in the inputs corresponds to.
    """

    positions: int = 0
    values: int = 0
    largest_error: float = 0.0
    largest_share: float = 0.0
    base_tensors: int = 0
    base_bytes: int = 0
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        base = f"{self.base_tensors} base tensors equal, " if self.base_tensors else ""
        rest = f"; {len(self.skipped)} tensors not compared" if self.skipped else ""
        return (
            f"{base}{self.positions:,} positions equal, {self.values:,} values within their type's "
            f"error (largest {self.largest_error:.2e}, {self.largest_share:.1%} of what is allowed){rest}"
        )


def verify_file(
    path: Path, parts: Sequence[Part], progress: Progress | None = None
) -> Verification:
    """Reads a file back and compares all of it but its header, which the writer has compared.

    Holds one layer's values, and pieces of the base, at a time.

    Args:
        parts: what made the file, in its order: a layer's deltas after the matrices that they repair.

    Raises:
        VerificationError: names the tensor and the first difference.
        FormatError: the file's structure, or an input, is not what it must be.
    """
    _forget_cache(path)
    out = Verification()
    file = PackedFile(path)
    left = dict(file.tensors)
    _check_padding(file)
    done, total = 0, sum(t.nbytes for t in left.values())
    for part in parts:
        if progress is not None:
            progress("verifying", done, total, part.specs[0].name)
        done += sum(s.nbytes for s in part.specs)
        if isinstance(part, DeltaPart):
            for name in _check_layer(file, part, out):
                left.pop(name, None)
            file.forget()
        else:
            for name in _check_part(file, part):
                out.base_tensors += 1
                out.base_bytes += left.pop(name).nbytes
    if progress is not None:
        progress("verifying", total, total, "")
    out.skipped = list(left)
    return out


def _check_layer(file: PackedFile, part: DeltaPart, out: Verification) -> list[str]:
    layer, repair = part.layer, part.repair
    i = layer.index
    names = [f"blk.{i}.ffn_gate_inp.weight", f"blk.{i}.ffn_delta.mean"]
    _same(file, names[0], file.router(i), router_weights(layer))
    # Those that the repair of the layer's matrices has read again, so that they are not read twice.
    positions = part.at.positions
    values = expert_values(layer, part.at.order, part.n_threads)
    mean = values.mean(axis=1, dtype=np.float64) if positions.size else np.zeros(len(values))
    _same(file, names[1], file.mean(i), mean.astype(np.float32))
    size, start = file.hidden * file.inner, 0
    for number, matrix in enumerate(MATRICES):
        stop = int(np.searchsorted(positions, (number + 1) * size))
        mine = positions[start:stop] - number * size
        prefix = f"blk.{i}.ffn_{matrix}_delta."
        packed = file.matrix(i, matrix)
        if packed is None or not mine.size:
            if (packed.n if packed else 0) != mine.size:
                raise _differs(file, prefix + "col", f"no positions, expected {mine.size}")
            continue
        names += [prefix + name for name in ("row_ptr", "col", "val", "scale")]
        found = _positions(file, prefix, packed, mine)
        added, shared = repair.take(matrix) if repair else (None, None)
        for expert in range(len(values)):
            source = values[expert, start:stop][found]
            if added is not None:
                source += added[found]
            _check_values(file, prefix + "val", packed, expert, source, out)
        if (packed.shared is None) != (shared is None):
            what = "no shared part" if packed.shared is None else "a shared part, expected none"
            raise _differs(file, prefix + "shared", what)
        if packed.shared is not None and shared is not None:
            names += [prefix + name for name in ("shared", "shared_scale")]
            _check_values(file, prefix + "shared", packed.shared, 0, shared[found], out)
        out.positions += mine.size
        start = stop
    part.at.release()
    return names


def _positions(
    file: PackedFile, prefix: str, packed: PackedMatrix, wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each position in the file's order its place in wanted, which rises."""
    defect = packed.defect()
    if defect:
        raise _differs(file, prefix + defect[0], defect[1])
    stored = packed.positions()
    order = np.argsort(stored, kind="stable")
    if len(stored) != len(wanted) or not np.array_equal(stored[order], wanted):
        which = (
            f"{len(stored)} positions, expected {len(wanted)}"
            if len(stored) != len(wanted)
            else "the position {} where {} is expected".format(
                *next((a, b) for a, b in zip(stored[order], wanted, strict=True) if a != b)
            )
        )
        raise _differs(file, prefix + "col", which)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place


def _check_values(
    file: PackedFile,
    name: str,
    packed: PackedMatrix,
    expert: int,
    source: F32Array,
    out: Verification,
) -> None:
    for start in range(0, packed.n, CHUNK):
        expected = source[start : start + CHUNK].astype(np.float64)
        error = np.abs(packed.values(expert, start, start + CHUNK) - expected)
        bound = error_bounds(packed, expert, start, expected)
        over = error > bound
        if over.any():
            at = int(np.argmax(over))
            raise _differs(
                file,
                name,
                f"expert {expert}'s value {start + at} differs by {error[at]:.3g} from "
                f"{expected[at]:.6g}, expected at most {bound[at]:.3g} ({packed.value_type})",
            )
        out.values += expected.size
        out.largest_error = max(out.largest_error, float(error.max()))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(bound > 0, error / bound, 0.0)
        out.largest_share = max(out.largest_share, float(share.max()))


def _check_part(file: PackedFile, part: Part) -> list[str]:
    """Compares a base part's tensors with the file's bytes; returns their names."""
    done: dict[str, int] = {}
    for name, piece in part.produce():
        expected = np.frombuffer(piece, np.uint8)
        tensor = file.tensors[name]
        at = done.get(name, 0)
        found = file.raw(tensor)[at : at + expected.size]
        if not np.array_equal(found, expected):
            where = int(np.argmax(found != expected)) if found.size == expected.size else found.size
            raise _differs(file, name, f"another byte than the base's at {at + where}")
        done[name] = at + expected.size
        file.forget()
    for name, size in done.items():
        if size != file.tensors[name].nbytes:
            raise _differs(file, name, f"{file.tensors[name].nbytes} bytes, expected {size}")
    return list(done)


def _check_padding(file: PackedFile) -> None:
    """Bytes between tensors are zero: then nothing in the file was left unread."""
    for tensor in file.tensors.values():
        end = tensor.offset + tensor.nbytes
        gap = file.data[end : tensor.offset + padded(tensor.nbytes, file.header.alignment)]
        if gap.any():
            raise _differs(file, tensor.name, "bytes behind it that are not zero")


def _same(file: PackedFile, name: str, found: F32Array, expected: F32Array) -> None:
    # Bytes, so that -0 and 0 differ as well.
    if found.tobytes() != expected.astype("<f4").tobytes():
        at = int(np.argmax(found.reshape(-1) != expected.reshape(-1)))
        raise _differs(
            file,
            name,
            f"element {at} is {found.reshape(-1)[at]:.9g}, expected {expected.reshape(-1)[at]:.9g}",
        )


def _forget_cache(path: Path) -> None:
    """Lets the next read come from the disk and not from what was just written."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _differs(file: PackedFile, name: str, what: str) -> VerificationError:
    return VerificationError(
        f"{file.path}: {name}: the written file has {what}; is the disk sound? Nothing was kept"
    )
