"""Stored number types and their conversion to float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]


@dataclass(frozen=True)
class DType:
    """A stored element type. bf16 is stored as the upper half of a float32, in uint16."""

    name: str
    numpy: str

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.numpy).itemsize)

    @property
    def is_float(self) -> bool:
        """True for f16, bf16, f32 and f64."""
        return self.name in ("f16", "bf16", "f32", "f64")

    @property
    def is_integer(self) -> bool:
        """True for the integers; bool is not one."""
        return self.name[0] in "iu"


DTYPES = {
    name: DType(name, code)
    for name, code in {
        "f64": "<f8",
        "f32": "<f4",
        "f16": "<f2",
        "bf16": "<u2",
        "i64": "<i8",
        "i32": "<i4",
        "i16": "<i2",
        "i8": "i1",
        "u8": "u1",
        "bool": "?",
    }.items()
}


def to_float32(raw: NDArray[Any], dtype: DType) -> F32Array:
    """Stored float elements as float32. f64 is rounded; too large values become infinite."""
    if dtype.name == "bf16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)


def to_float64(raw: NDArray[Any], dtype: DType) -> NDArray[np.float64]:
    """Stored float elements as float64, exactly."""
    if dtype.name == "bf16":
        return to_float32(raw, dtype).astype(np.float64)
    return raw.astype(np.float64)
