"""A checkpoint's tensor that stays in its file until it is used, whatever the file's format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import DType, F32Array, to_float32, to_float64


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
    def raw(self, verify: bool = True) -> NDArray[Any]:
        """The elements as stored (bf16 as uint16), mapped read-only, not loaded.

        Args:
            verify: check the stored checksum first, where the format has one.

        Raises:
            FormatError: the checksum is wrong.
        """

    @abstractmethod
    def same_place(self, other: FileTensor) -> bool:
        """True if both are the same elements of the same file."""

    def float32(self) -> F32Array:
        """A float tensor's elements as float32."""
        return to_float32(self.raw(), self.dtype)

    def float64(self) -> NDArray[np.float64]:
        """A float tensor's elements as float64, exactly."""
        return to_float64(self.raw(), self.dtype)

    def same_values(self, other: FileTensor) -> bool:
        """True if both are float tensors of the same shape and values; a NaN equals nothing."""
        if self.same_place(other):
            return True
        if self.shape != other.shape:
            return False
        mine, theirs = self.raw().reshape(-1), other.raw().reshape(-1)
        step = 1 << 20
        return all(
            np.array_equal(
                to_float64(mine[i : i + step], self.dtype),
                to_float64(theirs[i : i + step], other.dtype),
            )
            for i in range(0, mine.size, step)
        )
