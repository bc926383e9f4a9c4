"""A checkpoint's tensor that stays in its file until it is used, whatever the file's format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import DType, F32Array, to_float32, to_float64

_LOOKED_AT = 1 << 18  # values at a time, which stay in the cache
LARGEST = 65504.0  # F16's: far beyond any weight


@dataclass(frozen=True)
class Extremes:
    """What is among some numbers, read as float32. large: a finite magnitude beyond LARGEST."""

    nan: bool = False
    inf: bool = False
    large: bool = False

    @property
    def finite(self) -> bool:
        """True if all are numbers."""
        return not (self.nan or self.inf)

    def __or__(self, other: Extremes) -> Extremes:
        return Extremes(self.nan or other.nan, self.inf or other.inf, self.large or other.large)


def extremes(raw: NDArray[Any], dtype: DType) -> Extremes:
    """What is among stored float elements [n]."""
    found = Extremes()
    for i in range(0, raw.size, _LOOKED_AT):
        values = to_float32(raw[i : i + _LOOKED_AT], dtype)
        # The negation also catches NaN, which compares false.
        if not (values.max() <= LARGEST and values.min() >= -LARGEST):
            size = np.abs(values)
            infinite = np.isinf(size)
            large = bool(((size > LARGEST) & ~infinite).any())
            found |= Extremes(bool(np.isnan(size).any()), bool(infinite.any()), large)
    return found


class FileTensor(ABC):
    """A row-major tensor in a file."""

    @property
    @abstractmethod
    def dtype(self) -> DType:
        """The stored element type."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @abstractmethod
    def pieces(self) -> Iterator[NDArray[Any]]:
        """All elements as stored (bf16 as uint16) in row-major order, some at a time.

        A piece is valid until the next one. At the end the checksum, where the format has one, has
        been verified: on the way, unless it was before.

        Raises:
            FormatError: the checksum is wrong.
            OSError: the file cannot be read.
        """

    @abstractmethod
    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [..., start:stop] as stored; the checksum is not looked at.

        Raises:
            OSError: the file cannot be read.
        """

    @abstractmethod
    def at(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[Any]:
        """A few elements of a matrix as stored; the checksum is not looked at."""

    @abstractmethod
    def verify(self) -> None:
        """Verifies the checksum, where the format has one and it was not verified before.

        Raises:
            FormatError: it is wrong.
        """

    @abstractmethod
    def same_place(self, other: FileTensor) -> bool:
        """True if both are the same elements of the same file."""

    def extremes(self) -> Extremes:
        """What is among a float tensor's elements; reads and verifies as pieces() does."""
        found = Extremes()
        for piece in self.pieces():
            found |= extremes(piece, self.dtype)
        return found

    def array(self) -> NDArray[Any]:
        """All elements of a small tensor as stored; reads and verifies as pieces() does."""
        held = [piece.copy() for piece in self.pieces()]
        flat = np.concatenate(held) if held else np.empty(0, self.dtype.numpy)
        return flat.reshape(self.shape)

    def float32(self) -> F32Array:
        """A small float tensor's elements as float32."""
        return to_float32(self.array(), self.dtype)

    def float64(self) -> NDArray[np.float64]:
        """A small float tensor's elements as float64, exactly."""
        return to_float64(self.array(), self.dtype)
