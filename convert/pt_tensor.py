"""Tensors of a checkpoint that stay in the file until they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import DType
from .file_tensor import FileTensor
from .pt_zip import PtZip


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

    def raw(self, verify: bool = True) -> NDArray[Any]:
        """The elements as stored (bf16 as uint16), mapped read-only, not loaded.

        Args:
            verify: check the storage's checksum first, which reads all of it.

        Raises:
            FormatError: the checksum is wrong.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype.numpy)
        storage = self.storage
        if verify:
            storage.archive.check(storage.member)
        place = storage.archive.members[storage.member].offset
        flat = np.memmap(storage.archive.path, self.dtype.numpy, "r", place, (storage.count,))
        size = self.dtype.size
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [s * size for s in self.stride], writeable=False
        )

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
        and len(shape) == len(stride) <= 8
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
