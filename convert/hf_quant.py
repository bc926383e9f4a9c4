"""FP8 weights: what a config says of them, and a matrix's float32 rows made of values and scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.errors import FormatError

from . import native
from .arrays import F32Array, to_float32
from .safetensors_file import StoredTensor


@dataclass(frozen=True)
class StoredQuant:
    """How fp8 weights are stored.

    Attributes:
        scale: what stands in the name of a matrix's scale where "weight" stands in the matrix's.
        unused: endings of the names of tensors that only a runtime in fp8 needs.
        block: rows and columns that share a scale, or None for one scale of a matrix or of a row.
    """

    scale: str
    unused: tuple[str, ...]
    block: tuple[int, int] | None


def hf_quantization(config: Any, path: Path) -> StoredQuant | None:
    """quantization_config of config.json.

    Raises:
        FormatError: another method than fp8.
    """
    if config is None:
        return None
    if not isinstance(config, dict):
        raise _bad(path, f"expected an object, found {type(config).__name__}")
    method = config.get("quant_method")
    unused = ("activation_scale", "input_scale", "k_scale", "v_scale")
    if method == "fp8":
        return StoredQuant(
            "weight_scale_inv", unused, _block(config.get("weight_block_size"), path)
        )
    if method == "compressed-tensors":
        groups = config.get("config_groups")
        only = list(groups.values()) if isinstance(groups, dict) else []
        weights = only[0].get("weights") if len(only) == 1 and isinstance(only[0], dict) else None
        if (
            config.get("format") in ("float-quantized", "naive-quantized")
            and isinstance(weights, dict)
            and weights.get("type") == "float"
            and weights.get("num_bits") == 8
            and weights.get("group_size") is None
        ):
            return StoredQuant("weight_scale", unused, _block(weights.get("block_structure"), path))
    raise _bad(
        path,
        f"weights quantized by {str(method)[:40]!r} are not supported, expected fp8; "
        "use the model in BF16",
    )


def native_quantization(config: Any, path: Path) -> StoredQuant | None:
    """`quantization` of Mistral's params.json.

    Raises:
        FormatError: another format than fp8_e4m3.
    """
    if config is None:
        return None
    if not isinstance(config, dict) or config.get("qformat_weight") != "fp8_e4m3":
        raise _bad(path, "expected qformat_weight fp8_e4m3; use the model in BF16")
    return StoredQuant("qscale_weight", ("qscale_act",), None)


def _block(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(type(n) is int and 1 <= n < 2**31 for n in value)
    ):
        raise _bad(path, f"expected a block of two positive integers, found {value!r:.60}")
    return value[0], value[1]


def _bad(path: Path, message: str) -> FormatError:
    return FormatError(
        f"{path}: quantization_config: {message}", file=str(path), field="quantization_config"
    )


def take_scales(
    found: dict[str, StoredTensor], quant: StoredQuant | None
) -> dict[str, StoredTensor]:
    """Takes the scales out of the found tensors, and drops those that are unused.

    Returns:
        The scales by the names of their matrices.
    """
    if quant is None:
        return {}
    scales: dict[str, StoredTensor] = {}
    for name in list(found):
        stem, _, last = name.rpartition(".")
        matrix = f"{stem}.weight"
        if last == quant.scale and matrix in found:
            scales[matrix] = found.pop(name)
        elif last.endswith(quant.unused):
            del found[name]
    return scales


@dataclass(frozen=True)
class WeightSource:
    """A stored float tensor, or fp8 one with its scale, as float32.

    Without a block, scale holds one number, or one for each row.
    """

    stored: StoredTensor
    scale: StoredTensor | None = None
    block: tuple[int, int] | None = None

    def check(self) -> None:
        """Checks types and shapes.

        Raises:
            FormatError: not a float type, fp8 without a scale or the reverse, or an odd scale.
        """
        dtype, scale = self.stored.dtype, self.scale
        if dtype is None or not (dtype.is_float or dtype.is_fp8):
            raise self._bad(
                f"type {self.stored.type_name}, expected F32, F16, BF16, F64, F8_E4M3 or F8_E5M2"
            )
        if dtype.is_fp8 != (scale is not None):
            what = "no scale beside it" if scale is None else f"the scale {scale.name!r}"
            raise self._bad(f"type {self.stored.type_name} with {what}; are files missing?")
        if scale is None:
            return
        if len(self.stored.shape) != 2:
            raise self._bad(f"{self.stored.type_name} of shape {list(self.stored.shape)}")
        if scale.dtype is None or not scale.dtype.is_float:
            raise self._bad(f"the scale's type is {scale.type_name}, expected F32, F16 or BF16")
        expected = self._scale_shapes()
        if scale.shape not in expected:
            raise self._bad(
                f"the scale has the shape {list(scale.shape)}, expected "
                + " or ".join(str(list(s)) for s in expected)
            )
        values = np.asarray(to_float32(scale.array(), scale.dtype))
        if not np.isfinite(values).all() or not (values > 0).all():
            raise self._bad(f"the scale {scale.name!r} holds a value that is not positive")

    def _scale_shapes(self) -> tuple[tuple[int, ...], ...]:
        n_rows, n_cols = self.stored.shape
        if self.block is not None:
            return ((-(-n_rows // self.block[0]), -(-n_cols // self.block[1])),)
        return ((), (1,), (1, 1), (n_rows,), (n_rows, 1))

    def chunks(self, step: int, n_threads: int) -> Iterator[tuple[NDArray[Any], str]]:
        """All rows [n, cols], step at a time, with the name of their type: as stored, or f32 of fp8.

        A vector counts as one row. A chunk is valid until the next one.
        """
        dtype = self.stored.known_type()
        if self.scale is None:
            for rows in self.stored.rows(step):
                yield rows, dtype.name
            return
        scale, first = self._scales(), 0
        n_rows, n_cols = self.stored.shape
        # Blocks run down the rows and along the columns; the last ones may be cut off.
        block = self.block or (1 if len(scale) > 1 else max(1, n_rows), max(1, n_cols))
        buffer = np.empty((min(step, n_rows), n_cols), np.float32)
        for rows in self.stored.rows(step):
            values = buffer[: len(rows)]
            native.decode_fp8(
                rows,
                dtype.name,
                scale,
                values,
                block_rows=block[0],
                block_cols=block[1],
                first_row=first,
                n_threads=n_threads,
            )
            yield values, "f32"
            first += len(rows)

    def at(self, where: NDArray[np.int64]) -> F32Array:
        """Single elements by their flat numbers in a matrix, as float32."""
        row, col = np.divmod(where, self.stored.shape[1])
        assert self.stored.dtype is not None
        values = to_float32(self.stored.elements(where), self.stored.dtype)
        if self.scale is None:
            return values
        assert self.scale.dtype is not None
        n_scales = math.prod(self.scale.shape)
        if self.block is not None:
            number = row // self.block[0] * self.scale.shape[1] + col // self.block[1]
        else:
            number = row if n_scales > 1 else np.zeros_like(row)
        values *= to_float32(self.scale.elements(number), self.scale.dtype)
        return values

    def _scales(self) -> F32Array:
        """[block rows, block columns], or [rows or 1, 1] without a block."""
        assert self.scale is not None
        assert self.scale.dtype is not None
        values = to_float32(self.scale.array(), self.scale.dtype)
        return values if self.block is not None else values.reshape(-1, 1)

    def _bad(self, message: str) -> FormatError:
        stored = self.stored
        return FormatError(
            f"{stored.file}: tensor {stored.name!r}: {message}",
            file=str(stored.file),
            field=stored.name,
        )
