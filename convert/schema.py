"""Names, keys, types and limits of a SaRDinE file, versions 1 and 2 (docs/format.md). Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A file has the lowest version that describes it: 2 where the deltas have a shared part.
VERSION: Final = 1
SHARED_VERSION: Final = 2

KEY_PREFIX: Final = "sardine."
KEY_VERSION: Final = "sardine.version"
KEY_EXPERT_COUNT: Final = "sardine.expert_count"
KEY_EXPERT_USED_COUNT: Final = "sardine.expert_used_count"
KEY_EXPERT_NAMES: Final = "sardine.expert_names"
KEY_DELTA_MODE: Final = "sardine.delta_mode"
KEY_LAYERS: Final = "sardine.layers"
KEY_BLOCK_COLUMNS: Final = "sardine.block_columns"
KEY_COMPENSATION: Final = "sardine.compensation"

# Keys of an adapter file: the shape of the base that it is for.
ADAPTER_TYPE: Final = "sardine"
KEY_BASE_PREFIX: Final = "sardine.base."
KEY_BASE_NORMS: Final = "sardine.base.norm_crc32"

DELTA_MODES: Final = ("sparse", "gain")
COMPENSATIONS: Final = ("none", "residual", "extracted")
DEFAULT_COMPENSATION: Final = "residual"
SHARED_TYPE: Final = "f16"
MATRICES: Final = ("gate", "up", "down")
EXPERT_NAMES: Final = ("math", "logic", "code", "science", "planning", "abstract")

MAX_EXPERTS: Final = 256
MAX_BLOCK_COLUMNS: Final = 65536
DEFAULT_BLOCK_COLUMNS: Final = 8192  # so many f32 activations fit the first-level cache
_BALANCED_BLOCK_COLUMNS: Final = (
    6144  # where rows are cut: a prompt's tile fits the second level too
)
MAX_POSITIONS: Final = 2**31 - 1
MAX_NAME_BYTES: Final = 63
MIN_ALIGNMENT: Final = 32


@dataclass(frozen=True)
class GgmlType:
    """A tensor type: ggml's id, its name as `quantize` takes it, elements and bytes of a block."""

    id: int
    name: str
    block: int
    block_bytes: int

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of n_cols elements; n_cols must be a whole number of blocks."""
        if n_cols % self.block:
            raise ValueError(f"{n_cols} columns are not whole {self.name} blocks of {self.block}")
        return n_cols // self.block * self.block_bytes


F32: Final = GgmlType(0, "f32", 1, 4)
F16: Final = GgmlType(1, "f16", 1, 2)
BF16: Final = GgmlType(30, "bf16", 1, 2)
I16: Final = GgmlType(25, "i16", 1, 2)
I32: Final = GgmlType(26, "i32", 1, 4)
Q4_0: Final = GgmlType(2, "q4_0", 32, 18)
Q4_1: Final = GgmlType(3, "q4_1", 32, 20)
Q5_0: Final = GgmlType(6, "q5_0", 32, 22)
Q5_1: Final = GgmlType(7, "q5_1", 32, 24)
Q8_0: Final = GgmlType(8, "q8_0", 32, 34)
Q2_K: Final = GgmlType(10, "q2_k", 256, 84)
Q3_K: Final = GgmlType(11, "q3_k", 256, 110)
Q4_K: Final = GgmlType(12, "q4_k", 256, 144)
Q5_K: Final = GgmlType(13, "q5_k", 256, 176)
Q6_K: Final = GgmlType(14, "q6_k", 256, 210)
IQ2_XXS: Final = GgmlType(16, "iq2_xxs", 256, 66)
IQ2_XS: Final = GgmlType(17, "iq2_xs", 256, 74)
IQ3_XXS: Final = GgmlType(18, "iq3_xxs", 256, 98)
IQ1_S: Final = GgmlType(19, "iq1_s", 256, 50)
IQ4_NL: Final = GgmlType(20, "iq4_nl", 32, 18)
IQ3_S: Final = GgmlType(21, "iq3_s", 256, 110)
IQ2_S: Final = GgmlType(22, "iq2_s", 256, 82)
IQ4_XS: Final = GgmlType(23, "iq4_xs", 256, 136)
IQ1_M: Final = GgmlType(29, "iq1_m", 256, 56)

# What a weight matrix can be quantized to, in the order of bits.
WEIGHT_TYPES: Final = {
    t.name: t
    for t in (
        *(F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_NL, IQ4_XS, Q3_K),
        *(IQ3_S, IQ3_XXS, Q2_K, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S),
    )
}
TYPES: Final = {t.name: t for t in (*WEIGHT_TYPES.values(), I16, I32)}
DELTA_TYPES: Final = ("f32", "f16", "q8_0")
PLAIN_TYPES: Final = ("f32", "f16", "bf16")  # not quantized

# llama.cpp's file type numbers (general.file_type) of what a base can be converted to.
FILE_TYPES: Final = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "q4_0": 2,
    "iq4_xs": 30,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "q3_k_s": 11,
    "q2_k": 10,
}
OUT_TYPES: Final = tuple(FILE_TYPES)
DEFAULT_OUT_TYPE: Final = "q4_k_m"


def router(layer: int) -> str:
    """Name of layer's router, F32 [H, E]."""
    return f"blk.{layer}.ffn_gate_inp.weight"


def delta_mean(layer: int) -> str:
    """Name of the experts' mean values, F32 [E]."""
    return f"blk.{layer}.ffn_delta.mean"


def delta(layer: int, matrix: str, part: str) -> str:
    """Name of an array of a matrix: row_ptr, col, val, scale, shared or shared_scale."""
    return f"blk.{layer}.ffn_{matrix}_delta.{part}"


def matrix_shape(matrix: str, hidden: int, inner: int) -> tuple[int, int]:
    """(n_rows, n_cols) of gate and up [I, H], of down [H, I]."""
    return (hidden, inner) if matrix == "down" else (inner, hidden)


def is_sardine_tensor(name: str) -> bool:
    """True for names that only a SaRDinE file holds."""
    return "ffn_gate_inp" in name or ("ffn_" in name and "_delta" in name)


def default_block_columns(hidden: int, inner: int) -> int:
    """Columns of a block for matrices of these widths: one block, or equal ones of the widest rows alone.

    docs/performance.md, "What helped and what did not".
    """
    widest = max(hidden, inner)
    if widest <= DEFAULT_BLOCK_COLUMNS:
        return DEFAULT_BLOCK_COLUMNS
    n_blocks = -(-widest // _BALANCED_BLOCK_COLUMNS)
    return -(-widest // (32 * n_blocks)) * 32
