"""Stored number types and their conversion to float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]


@dataclass(frozen=True)
class DType:
    """A stored element type. bf16 is held as the upper half of a float32, in uint16; fp8 in uint8."""

    name: str
    numpy: str

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.numpy).itemsize)

    @property
    def is_float(self) -> bool:
        """True for f16, bf16, f32 and f64; fp8 means nothing without a scale."""
        return self.name in ("f16", "bf16", "f32", "f64")

    @property
    def is_fp8(self) -> bool:
        """True for the 8-bit floats."""
        return self.name.startswith("f8")

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
        "f8_e4m3": "u1",
        "f8_e5m2": "u1",
    }.items()
}


def _fp8_tables() -> dict[str, F32Array]:
    """The value of each byte. E4M3 (fn) has no infinities; E5M2 is the upper half of an f16."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, (code & 7) / 8.0
    size = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 7), fraction * 2.0**-6)
    size[(code & 127) == 127] = np.nan
    e4m3 = np.where(code < 128, size, -size).astype(np.float32)
    e5m2 = (code.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    return {"f8_e4m3": e4m3, "f8_e5m2": e5m2}


_FP8 = _fp8_tables()


def to_float32(raw: NDArray[Any], dtype: DType) -> F32Array:
    """Stored float elements as float32. f64 is rounded; too large values become infinite."""
    if dtype.is_fp8:
        return np.take(_FP8[dtype.name], raw)
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
