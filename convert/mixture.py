"""Which type each tensor of a base gets: llama.cpp's rules for dense models, restated.

Source: llama_tensor_get_type, llama_tensor_get_type_impl and tensor_type_fallback in llama.cpp's
src/llama-quant.cpp. Tests compare every out type with them, over many shapes and options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from . import native, schema
from .options import OptionError, Quantization
from .schema import GgmlType

# The type of a matrix that no rule below names.
_MAIN = {
    "f32": schema.F32,
    "f16": schema.F16,
    "bf16": schema.BF16,
    "q8_0": schema.Q8_0,
    "q6_k": schema.Q6_K,
    "q5_k_m": schema.Q5_K,
    "q5_k_s": schema.Q5_K,
    "q4_k_m": schema.Q4_K,
    "q4_k_s": schema.Q4_K,
    "q4_0": schema.Q4_0,
    "iq4_xs": schema.IQ4_XS,
    "q3_k_l": schema.Q3_K,
    "q3_k_m": schema.Q3_K,
    "q3_k_s": schema.Q3_K,
    "q2_k": schema.Q2_K,
}
# attn_output.weight of these out types.
_ATTENTION_OUTPUT = {"q2_k": schema.Q3_K, "q3_k_m": schema.Q4_K, "q3_k_l": schema.Q5_K}

# What a row length that is not a whole number of blocks turns a type into.
_FALLBACK = {
    **dict.fromkeys(("q2_k", "q3_k"), schema.Q4_0),
    "q4_k": schema.Q5_0,
    "q5_k": schema.Q5_1,
    "q6_k": schema.Q8_0,
    **dict.fromkeys(("iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs"), schema.IQ4_NL),
    **dict.fromkeys(("iq1_s", "iq1_m"), schema.IQ4_NL),
}
# Types whose result without an importance matrix llama.cpp holds to be useless.
_NEED_IMPORTANCE = ("iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")

# Rounded without looking at it.
_NO_IMPORTANCE = ("f32", "f16", "bf16", "q8_0")

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_VALUE, _DOWN, _ATTN_OUT = "attn_v.weight", "ffn_down", "attn_output.weight"


@dataclass(frozen=True)
class ModelShape:
    """What the rules ask of the model. arch is general.architecture."""

    arch: str
    layers: int
    heads: int
    heads_kv: int


@dataclass(frozen=True)
class Unquantized:
    """A tensor to choose a type for. ne: row length first; stored: its type if it is left alone."""

    name: str
    ne: tuple[int, ...]
    stored: GgmlType = schema.F32


def assign_types(
    quant: Quantization, model: ModelShape, tensors: Sequence[Unquantized]
) -> list[GgmlType]:
    """The type of each tensor, in the order given, which must be that of the layers.

    Raises:
        OptionError: an asked-for type does not fit the tensor's rows, or needs an importance
            matrix that is not there.
    """
    rules = _Rules(quant, model, tied=all(t.name != OUTPUT for t in tensors))
    types = [rules.choose(t) for t in tensors]
    for tensor, chosen in zip(tensors, types, strict=True):
        _check_importance(quant, tensor, chosen)
    return types


def unused_options(
    quant: Quantization, tensors: Sequence[Unquantized], types: Sequence[GgmlType]
) -> list[str]:
    """Warnings about options that change nothing for these tensors, of which types were chosen."""
    chosen = {t.name: kind for t, kind in zip(tensors, types, strict=True) if _is_matrix(t)}
    names = list(chosen)
    out = _unused_patterns(quant, names)
    wanted = quant.output_tensor_type
    if wanted is not None and OUTPUT not in chosen and chosen.get(EMBEDDING) is not wanted:
        out.append(
            f"output tensor type {wanted.name}: the model's output matrix is its embedding, which "
            "another option decides; use the token embedding type"
        )
    if quant.leave_output_tensor and OUTPUT not in names:
        out.append("leave output tensor: the model's output matrix is its embedding")
    if quant.imatrix is not None:
        if all(kind.name in _NO_IMPORTANCE for kind in types):
            out.append(f"{quant.imatrix.name}: no type of this output makes use of importance")
        matched = sum(name in quant.imatrix.entries for name in names)
        if not matched:
            out.append(f"{quant.imatrix.name}: names no matrix of this model, so nothing uses it")
        elif matched < len([n for n in names if n not in (EMBEDDING, OUTPUT)]):
            out.append(
                f"{quant.imatrix.name}: names {matched} of the model's {len(names)} matrices; "
                "the others are quantized without importance"
            )
    return out


def _unused_patterns(quant: Quantization, names: list[str]) -> list[str]:
    left = set(names)
    if quant.token_embedding_type is not None:
        left.discard(EMBEDDING)
    if quant.output_tensor_type is not None or quant.leave_output_tensor:
        left.discard(OUTPUT)
    out = []
    for pattern, wanted in quant.tensor_types:
        found = {name for name in names if pattern.search(name)}
        if not found & left:
            why = "other options or patterns before it decide all of its matrices"
            why = why if found else "no matrix has such a name"
            out.append(f"tensor type {pattern.pattern}={wanted.name}: {why}")
        left -= found
    return out


class _Rules:
    """llama.cpp's choice. Stateful as there: it counts the tensors that its mixtures decided."""

    def __init__(self, quant: Quantization, model: ModelShape, tied: bool) -> None:
        self.quant, self.model, self.tied = quant, model, tied
        self.seen: Counter[str] = Counter()

    def choose(self, tensor: Unquantized) -> GgmlType:
        """The type of the next tensor."""
        quant, name, n_cols = self.quant, tensor.name, tensor.ne[0]
        main = _MAIN[quant.out_type]
        if not _is_matrix(tensor):
            return schema.F32
        if name == OUTPUT and quant.leave_output_tensor:
            return tensor.stored
        if name == EMBEDDING and quant.token_embedding_type is not None:
            return _exactly(quant.token_embedding_type, tensor, "token embedding type")
        if name == OUTPUT and quant.output_tensor_type is not None:
            return _exactly(quant.output_tensor_type, tensor, "output tensor type")
        if main.block == 1:
            return main
        for pattern, wanted in quant.tensor_types:
            if pattern.search(name):
                return _fitting(wanted, n_cols)
        if self.tied and name == EMBEDDING and quant.output_tensor_type and not quant.pure:
            return _exactly(quant.output_tensor_type, tensor, "output tensor type")
        return _fitting(main if quant.pure else self._mixture(name, n_cols, main), n_cols)

    def _mixture(self, name: str, n_cols: int, main: GgmlType) -> GgmlType:
        if name == OUTPUT or (self.tied and name == EMBEDDING):
            return schema.Q8_0 if main is schema.Q8_0 or n_cols % main.block else schema.Q6_K
        if _VALUE in name:
            self.seen[_VALUE] += 1
            return self._attention_value(self.seen[_VALUE] - 1) or main
        if _DOWN in name:
            self.seen[_DOWN] += 1
            return self._ffn_down(self.seen[_DOWN] - 1) or main
        if _ATTN_OUT in name:
            return _ATTENTION_OUTPUT.get(self.quant.out_type, main)
        return main

    def _attention_value(self, i: int) -> GgmlType | None:
        """attn_v.weight number i: small where several heads share it, and sensitive."""
        out_type, main = self.quant.out_type, _MAIN[self.quant.out_type]
        is_shared = self.model.heads // self.model.heads_kv >= 4
        chosen = main
        if out_type == "q2_k":
            chosen = schema.Q4_K if is_shared else schema.Q3_K
        elif out_type == "q3_k_m":
            chosen = schema.Q5_K if i < 2 else schema.Q4_K
        elif out_type == "q3_k_l" or (out_type == "iq4_xs" and is_shared):
            chosen = schema.Q5_K
        elif out_type in ("q4_k_m", "q5_k_m") and _more_bits(i, self.model.layers):
            chosen = schema.Q6_K
        elif out_type == "q4_k_s" and i < 4:
            chosen = schema.Q5_K
        if self._is_llama_70b() and chosen in (schema.Q3_K, schema.Q4_K):
            return schema.Q5_K
        return chosen

    def _ffn_down(self, i: int) -> GgmlType | None:
        """ffn_down.weight number i: the first layers are the sensitive ones."""
        out_type, n = self.quant.out_type, self.model.layers
        has_importance = self.quant.imatrix is not None
        if out_type == "q2_k":
            return schema.Q3_K
        if out_type == "q3_k_m":
            return schema.Q5_K if i < n // 16 else schema.Q4_K
        if out_type == "q3_k_l":
            return schema.Q5_K
        if out_type in ("q4_k_m", "q5_k_m") and _more_bits(i, n):
            return schema.Q6_K
        if i < n // 8:
            if out_type == "q4_k_s" or (out_type == "iq4_xs" and not has_importance):
                return schema.Q5_K
            if out_type == "q4_0" and has_importance:
                return schema.Q4_1
        return None

    def _is_llama_70b(self) -> bool:
        model = self.model
        return model.arch == "llama" and model.layers == 80 and model.heads != model.heads_kv


def _more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and each third one between."""
    eighth = n // 8
    return i < eighth or i >= 7 * n // 8 or (i - eighth) % 3 == 2


def _is_matrix(tensor: Unquantized) -> bool:
    return (
        len(tensor.ne) > 1
        and tensor.ne[1] > 1  # a single row counts as a vector, as in ggml
        and tensor.name.endswith("weight")
        and not tensor.name.endswith("_norm.weight")
    )


def _fitting(wanted: GgmlType, n_cols: int) -> GgmlType:
    if n_cols % wanted.block == 0:
        return wanted
    fallback = _FALLBACK.get(wanted.name, wanted)
    return fallback if n_cols % fallback.block == 0 else schema.F16


def _exactly(wanted: GgmlType, tensor: Unquantized, option: str) -> GgmlType:
    if tensor.ne[0] % wanted.block:
        raise OptionError(
            f"{option} {wanted.name}: rows of {tensor.name} have {tensor.ne[0]} values, which are "
            f"not whole blocks of {wanted.block}; choose another type"
        )
    return wanted


def _check_importance(quant: Quantization, tensor: Unquantized, chosen: GgmlType) -> None:
    found = quant.imatrix.importance(tensor.name, tensor.ne[0]) if quant.imatrix else None
    if found is not None:
        return
    if native.requires_importance(chosen.name) or (
        chosen.name in _NEED_IMPORTANCE and tensor.name not in (EMBEDDING, OUTPUT)
    ):
        raise OptionError(
            f"type {chosen.name} of {tensor.name} needs an importance matrix of it; "
            "give one (imatrix), or choose another type"
        )
