"""How a folder's weights are quantized: the options of llama-quantize, checked."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from . import schema
from .imatrix import Imatrix, read_imatrix
from .schema import GgmlType


class OptionError(ValueError):
    """An option that does not fit the others or the inputs."""


@dataclass(frozen=True)
class Quantization:
    """What decides the type of each tensor, and how its values are rounded.

    Attributes:
        out_type: one of schema.OUT_TYPES.
        tensor_types: patterns and types; the first pattern that a tensor's name contains decides.
        pure: every matrix gets the out type's main type.
        token_embedding_type, output_tensor_type: of token_embd.weight and output.weight (or of the
            embedding, where it serves as the output too).
        leave_output_tensor: output.weight stays in the type in which it is stored.
        imatrix: the importance of the matrices' columns.
    """

    out_type: str
    tensor_types: tuple[tuple[re.Pattern[str], GgmlType], ...] = ()
    pure: bool = False
    token_embedding_type: GgmlType | None = None
    output_tensor_type: GgmlType | None = None
    leave_output_tensor: bool = False
    imatrix: Imatrix | None = None


class QuantOptions(TypedDict, total=False):
    """The options of quantization(), as keywords of convert() and write_base()."""

    imatrix: str | os.PathLike[str] | None
    tensor_types: Sequence[str]
    pure: bool
    token_embedding_type: str | None
    output_tensor_type: str | None
    leave_output_tensor: bool


def quantization(
    out_type: str,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    tensor_types: Sequence[str] = (),
    pure: bool = False,
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
    leave_output_tensor: bool = False,
) -> Quantization:
    """Checks the options one by one and against each other, and reads the importance matrix.

    Args:
        tensor_types: texts NAME=TYPE; NAME is a regular expression, put into lower case.

    Raises:
        OptionError: names the option that is wrong.
        FormatError, OSError: see read_imatrix.
    """
    if out_type not in schema.OUT_TYPES:
        raise OptionError(f"outtype {out_type!r}: expected {', '.join(schema.OUT_TYPES)}")
    if tensor_types and out_type in ("f32", "f16", "bf16"):
        raise OptionError(
            f"tensor type {tensor_types[0]!r}: outtype {out_type} keeps every matrix in {out_type}; "
            "choose a quantized outtype"
        )
    if leave_output_tensor and output_tensor_type is not None:
        raise OptionError("leave output tensor and output tensor type: expected one of them")
    return Quantization(
        out_type,
        tuple(_tensor_type(text) for text in tensor_types),
        pure,
        _type(token_embedding_type, "token embedding type"),
        _type(output_tensor_type, "output tensor type"),
        leave_output_tensor,
        read_imatrix(imatrix) if imatrix is not None else None,
    )


def _tensor_type(text: str) -> tuple[re.Pattern[str], GgmlType]:
    name, equals, kind = text.partition("=")
    if not name or not equals:
        raise OptionError(f"tensor type {text!r}: expected NAME=TYPE, e.g. attn_v=q8_0")
    found = _type(kind, f"tensor type {text!r}")
    assert found is not None
    try:
        with warnings.catch_warnings():
            # Of "[[:digit:]]" and the like, which mean something else in Python.
            warnings.simplefilter("error", FutureWarning)
            return re.compile(name.lower()), found
    except (re.error, RecursionError, OverflowError, FutureWarning) as error:
        raise OptionError(
            f"tensor type {text!r}: {name!r} is not a regular expression of Python's syntax "
            rf"(\d for a digit, not [[:digit:]]): {error}"
        ) from None


def _type(name: str | None, what: str) -> GgmlType | None:
    if name is None:
        return None
    if name.lower() not in schema.WEIGHT_TYPES:
        raise OptionError(f"{what}: {name!r} is no type, expected {', '.join(schema.WEIGHT_TYPES)}")
    return schema.WEIGHT_TYPES[name.lower()]
