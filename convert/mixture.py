"""Which type a base tensor gets: llama.cpp's rules for mistral3, restated.

Source: llama_tensor_get_type and tensor_type_fallback in llama.cpp's src/llama-quant.cpp (for
q4_k_m), and the converter's prepare_tensors (for the others). A test compares them.
"""

from __future__ import annotations

from . import schema
from .schema import GgmlType

# What a row length that is not a whole number of blocks turns a type into.
_FALLBACK = {"q4_k": schema.Q5_0, "q5_k": schema.Q5_1, "q6_k": schema.Q8_0}


def tensor_type(
    out_type: str, name: str, ne: tuple[int, ...], layer: int, n_layers: int, tied: bool
) -> GgmlType:
    """The type of a base tensor.

    Args:
        out_type: one of schema.OUT_TYPES.
        name: its GGUF name; ne: its shape, row length first; layer: -1 outside of the layers.
        n_layers: layers of the model; tied: the file has no output.weight.
    """
    if len(ne) < 2 or name.endswith("_norm.weight"):
        return schema.F32
    if out_type != "q4_k_m":
        return _fitting(schema.TYPES[out_type], ne[0])
    is_output = name == "output.weight" or (tied and name == "token_embd.weight")
    is_sensitive = name.endswith((".attn_v.weight", ".ffn_down.weight"))
    if is_output or (is_sensitive and _more_bits(layer, n_layers)):
        return _fitting(schema.Q6_K, ne[0])
    return _fitting(schema.Q4_K, ne[0])


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and the last eighth of the layers, and each third one between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: GgmlType, n_cols: int) -> GgmlType:
    if n_cols % wanted.block == 0:
        return wanted
    fallback = _FALLBACK.get(wanted.name, wanted)
    return fallback if n_cols % fallback.block == 0 else schema.F16
