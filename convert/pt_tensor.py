"""Tensors of a checkpoint that stay in the file until they are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import DType
from .file_tensor import Extremes, FileTensor, extremes
from .pt_zip import PtZip
from .reading import PIECE_BYTES, read_columns, read_elements

MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Storage:
    """A run of `count` elements in the archive member data/KEY."""

    archive: PtZip
    key: str
    dtype: DType
    count: int

    @property
    def member(self) -> str:
        """Its name in the archive."""
        return f"data/{self.key}"

    @property
    def place(self) -> int:
        """The byte of the file where it begins."""
        return self.archive.members[self.member].offset

    def pieces(self) -> Iterator[NDArray[Any]]:
        """See PtZip.pieces."""
        for piece in self.archive.pieces(self.member):
            yield np.frombuffer(piece, self.dtype.numpy)

    def extremes(self) -> Extremes:
        """What is among its elements, read as floats; found out once, with the checksum."""
        known, key = self.archive.extremes, (self.member, self.dtype.name)
        if key not in known:
            found = Extremes()
            for piece in self.pieces():
                found |= extremes(piece, self.dtype)
            known[key] = found
        return known[key]


@dataclass(frozen=True)
class PtTensor(FileTensor):
    """A tensor: a shape over a storage, in elements. stride and offset are within the storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.size

    @property
    def dtype(self) -> DType:
        """The stored element type."""
        return self.storage.dtype

    @property
    def _whole(self) -> bool:
        """True if it is all of its storage in row-major order."""
        step = 1
        for n, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n > 1 and stride != step:
                return False
            step *= n
        return step == self.storage.count

    def pieces(self) -> Iterator[NDArray[Any]]:
        """See FileTensor. The checksum of a part of a storage takes a pass over all of it."""
        if self._whole:
            yield from self.storage.pieces()
            return
        self.verify()
        n_cols = self.shape[-1] if self.shape else 1
        step = max(1, PIECE_BYTES // self.dtype.size)
        for row in np.ndindex(self.shape[:-1]):
            shift = sum(i * s for i, s in zip(row, self.stride, strict=False))
            part = replace(
                self,
                offset=self.offset + shift,
                size=self.size[-1:] or (1,),
                stride=self.stride[-1:] or (1,),
            )
            for start in range(0, n_cols, step):
                yield part.block(start, min(n_cols, start + step))

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """See FileTensor."""
        if 0 in self.shape:
            return np.empty((*self.shape[:-1], stop - start), self.dtype.numpy)
        storage, kind, size = self.storage, self.dtype.numpy, self.dtype.size
        if len(self.shape) <= 2 and (self.stride[-1] == 1 or self.shape[-1] == 1):
            place = storage.place + self.offset * size
            return read_columns(
                storage.archive.path, kind, place, self.shape, self.stride[0], start, stop
            )
        # Laid out as torch.save writes only what was transposed or sliced with steps.
        flat = np.memmap(storage.archive.path, kind, "r", storage.place, (storage.count,))
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [s * size for s in self.stride], writeable=False
        )
        return np.array(view[..., start:stop])

    def at(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[Any]:
        """See FileTensor."""
        where = self.offset + row * self.stride[0] + column * self.stride[1]
        storage = self.storage
        return read_elements(storage.archive.path, self.dtype.numpy, storage.place, where)

    def verify(self) -> None:
        """See FileTensor."""
        if 0 not in self.shape:
            self.storage.archive.check(self.storage.member)

    def extremes(self) -> Extremes:
        """See FileTensor; of a clean storage all parts are known to be clean after one pass."""
        found = Extremes() if 0 in self.shape else self.storage.extremes()
        return super().extremes() if found != Extremes() and not self._whole else found

    def same_place(self, other: FileTensor) -> bool:
        """True if both are the same elements of the same storage."""
        return (
            isinstance(other, PtTensor)
            and self.storage.key == other.storage.key
            and self.offset == other.offset
            and self.shape == other.shape
            and self.stride == other.stride
            and self.dtype == other.dtype
        )


def rebuild(archive: PtZip, storage: Any, offset: Any, shape: Any, stride: Any) -> PtTensor:
    """Makes a tensor after checking that all its elements lie in its storage.

    Raises:
        FormatError: wrong kinds of arguments, negative numbers, or elements outside.
    """
    if not isinstance(storage, Storage):
        raise archive.bad("data.pkl: a tensor has no storage", "data.pkl")
    if not (
        _is_counts(shape)
        and _is_counts(stride)
        and _is_counts([offset])
        and len(shape) == len(stride) <= MAX_DIMENSIONS
    ):
        raise archive.bad("data.pkl: a tensor has malformed size, stride or offset", "data.pkl")
    if 0 not in shape:
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if last >= storage.count:
            raise archive.bad(
                f"data.pkl: a tensor of size {list(shape)}, stride {list(stride)} "
                f"and offset {offset} ends outside of its storage of "
                f"{storage.count} elements",
                "data.pkl",
            )
    # Broadcast tensors (stride 0) would claim more elements than the file holds.
    n = 1
    for dim in shape:
        n *= dim
    if n > storage.count:
        raise archive.bad(
            f"data.pkl: a tensor of size {list(shape)} has more elements than its "
            f"storage of {storage.count}",
            "data.pkl",
        )
    return PtTensor(storage, offset, tuple(shape), tuple(stride))


def _is_counts(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and all(
        type(v) is int and 0 <= v < 2**62 for v in values
    )


def make_storage(archive: PtZip, pid: Any, types: dict[str, DType]) -> Storage:
    """A storage from torch.save's persistent id ("storage", type, key, location, count).

    Raises:
        FormatError: another id, an unknown type, or a member of another size.
    """
    if not (
        isinstance(pid, tuple)
        and len(pid) == 5
        and pid[0] == "storage"
        and isinstance(pid[2], str)
        and isinstance(pid[3], str)
        and _is_counts([pid[4]])
    ):
        raise archive.bad("data.pkl: a persistent id is not one of a storage", "data.pkl")
    name = getattr(pid[1], "name", None)
    if not isinstance(name, str) or name not in types:
        raise archive.bad(
            f"data.pkl: storage type {str(name)[:60]!r} is not supported, expected "
            "one of float, double, half, bfloat16, integers, bool",
            "data.pkl",
        )
    storage = Storage(archive, pid[2], types[name], pid[4])
    member = archive.members.get(storage.member)
    if member is None:
        raise archive.bad(f"has no member {storage.member[:100]}, which data.pkl names", "data.pkl")
    if member.size != storage.count * storage.dtype.size:
        raise archive.bad(
            f"the member {storage.member} has {member.size} bytes, data.pkl says "
            f"{storage.count} elements of {storage.dtype.name}",
            storage.member,
        )
    return storage
