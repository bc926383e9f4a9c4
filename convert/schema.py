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
DEFAULT_COMPENSATION: Final = "extracted"
SHARED_TYPE: Final = "f16"
MATRICES: Final = ("gate", "up", "down")
EXPERT_NAMES: Final = ("math", "logic", "code", "science", "planning", "abstract")

MAX_EXPERTS: Final = 256
MAX_BLOCK_COLUMNS: Final = 65536
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
Q5_0: Final = GgmlType(6, "q5_0", 32, 22)
Q5_1: Final = GgmlType(7, "q5_1", 32, 24)
Q8_0: Final = GgmlType(8, "q8_0", 32, 34)
Q4_K: Final = GgmlType(12, "q4_k", 256, 144)
Q5_K: Final = GgmlType(13, "q5_k", 256, 176)
Q6_K: Final = GgmlType(14, "q6_k", 256, 210)

TYPES: Final = {t.name: t for t in (F32, F16, BF16, I16, I32, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)}
DELTA_TYPES: Final = ("f32", "f16", "q8_0")
OUT_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
PLAIN_TYPES: Final = ("f32", "f16", "bf16")  # not quantized

# llama.cpp's file type numbers (general.file_type).
FILE_TYPES: Final = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15, "bf16": 32}


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
