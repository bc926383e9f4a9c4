"""--check: every index and value of a file, by the runtime's loader and once more in NumPy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from sardine_gguf import _native
from sardine_gguf._native import GgufTensor
from sardine_gguf.packed_file import PackedFile, is_expert_tensor

CHUNK = 32 << 20  # bytes of a tensor at a time
# Where a block of each quantized type holds its F16 numbers; the rest of it are small integers.
_F16_FIELDS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ3_S": (0,), "IQ3_XXS": (0,), "IQ2_S": (0,), "IQ2_XS": (0,), "IQ2_XXS": (0,),
}  # fmt: skip
_KINDS = {int(kind): kind.name for kind in GGMLQuantizationType}
# Plain types: the unsigned integer of their size, and the bits of the exponent.
_FLOATS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass
class CheckResult:
    """What was looked at. unchecked: base tensors of types without numbers that this module knows."""

    positions: int = 0
    values: int = 0
    base_tensors: int = 0
    unchecked: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        rest = f"; not looked into: {', '.join(self.unchecked)}" if self.unchecked else ""
        return (
            f"ok: {self.positions:,} positions, {self.values:,} values, "
            f"{self.base_tensors} base tensors{rest}"
        )


def check(file: PackedFile) -> CheckResult:
    """Checks all of a file.

    Raises:
        FormatError: names the first tensor or key that is not what it must be.
    """
    if file.kind == "adapter":
        _native.check_adapter(file.header)
    else:
        _native.Model(os.fsencode(file.path))
    result = check_experts(file)
    for tensor in file.header.tensors:
        if not is_expert_tensor(tensor.name):
            _check_base(file, tensor, result)
    return result


def check_experts(file: PackedFile) -> CheckResult:
    """Checks the experts' tensors in NumPy.

    Raises:
        FormatError: as check().
    """
    result = CheckResult()
    for layer in file.layers:
        for name, small in (
            (f"blk.{layer}.ffn_gate_inp.weight", file.router(layer)),
            (f"blk.{layer}.ffn_delta.mean", file.mean(layer)),
        ):
            if not np.isfinite(small).all():
                raise file.bad(name, "holds a number that is not finite")
    for layer, matrix, packed in file.matrices():
        defect = packed.defect()
        if defect:
            raise file.bad(f"blk.{layer}.ffn_{matrix}_delta.{defect[0]}", defect[1])
        result.positions += packed.n
        result.values += packed.n * (len(packed.scale) + (packed.shared is not None))
    return result


def _check_base(file: PackedFile, tensor: GgufTensor, result: CheckResult) -> None:
    kind = _KINDS.get(tensor.type, "")  # ggml has types that gguf-py does not know
    offsets: tuple[int, ...] = (0,)
    if kind in _FLOATS:
        code, exponent = _FLOATS[kind]
        width = np.dtype(code).itemsize
    elif kind in _F16_FIELDS:
        code, exponent = _FLOATS["F16"]
        width, offsets = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)][1], _F16_FIELDS[kind]
    else:
        result.unchecked.append(tensor.name)
        return
    blocks: NDArray[np.uint8] = file.raw(tensor).reshape(-1, width)
    step = max(1, CHUNK // width)
    for start in range(0, len(blocks), step):
        for offset in offsets:
            end = offset + np.dtype(code).itemsize
            bits = np.ascontiguousarray(blocks[start : start + step, offset:end]).view(code)
            bad = (bits & exponent) == exponent
            if bad.any():
                raise file.bad(
                    tensor.name,
                    f"holds a number that is not finite in block {start + int(np.argmax(bad))}",
                )
    result.base_tensors += 1
