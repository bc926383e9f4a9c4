"""How far a stored value may be from its source: half a step of its type, derived per value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.packed_file import PackedMatrix

Float64 = NDArray[np.float64]
_F16_HALF_STEP = 2.0**-25  # of the subnormal numbers, whose step is 2^-24


def half_step_f16(values: Float64) -> Float64:
    """Half the distance of neighbouring F16 numbers at each value.

    |v| in [2^(e-1), 2^e) has 11 significant bits: the step is 2^(e-11), but 2^-24 at least.
    """
    steps = np.ldexp(1.0, np.frexp(values)[1] - 12)
    return np.where(values == 0, _F16_HALF_STEP, np.maximum(steps, _F16_HALF_STEP))


def error_bounds(packed: PackedMatrix, expert: int, start: int, source: Float64) -> Float64:
    """Largest |stored - source| of each value, for the values of an expert from start on.

    Values are divided by the expert's scale, a power of two, which is exact. Then f32 is exact; f16
    rounds to nearest; q8_0 has, for a block whose largest magnitude is a, the step d = a / 127: q is
    within half of v / d, and stored is q * f16(d), so that |q| times the rounding of d is added.
    The quotient and d are computed in f32: a relative 2^-20 of a covers their roundings.

    Args:
        start: a multiple of 32; source: float64 [m], the exact values from there on.
    """
    if packed.value_type == "f32":
        return np.zeros_like(source)
    scale = np.float64(packed.scale[expert])
    values = source / scale
    if packed.value_type == "f16":
        return half_step_f16(values) * scale
    m = len(values)
    blocks = np.zeros(-(-m // 32) * 32)
    blocks[:m] = np.abs(values)
    largest = blocks.reshape(-1, 32).max(axis=1)
    step = largest / 127
    stored = packed.stored[expert, start // 32 : start // 32 + len(step)]
    # A stored step further away than its own rounding is damage, whatever its values.
    rounding = np.minimum(
        np.abs(stored["d"].astype(np.float64) - step), half_step_f16(step) * 1.001
    )
    bound = step[:, None] / 2 + np.abs(stored["q"].astype(np.float64)) * rounding[:, None]
    bound += largest[:, None] * 2.0**-20
    # A step below F16's smallest number is stored as 0, and the block's values with it.
    lost = (stored["d"] == 0) & (step <= _F16_HALF_STEP)
    bound[lost] = largest[lost, None]
    out: Float64 = bound.reshape(-1)[:m] * scale
    return out
