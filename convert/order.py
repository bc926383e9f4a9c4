"""The order of the tensors in the file: the base's, and behind each layer the experts of that layer.

So a layer's bytes lie side by side in the mapping, and what quantizing a matrix loses is known when
its deltas are written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from .deltas import DeltaPart
from .gguf_file import Part
from .hf_tensors import BaseTensorPart

_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_FFN = re.compile(r"ffn_(gate|up|down)\.weight$")


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, or None."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def file_order(base: Sequence[Part], deltas: Sequence[DeltaPart]) -> list[Part]:
    """All parts in file order; base matrices that a repair follows get it."""
    by_layer = {part.layer.index: part for part in deltas}
    last: dict[int, int] = {}
    for number, part in enumerate(base):
        layer = layer_of(part.specs[-1].name)
        if layer is not None:
            last[layer] = number
    out: list[Part] = []
    for number, part in enumerate(base):
        layer = layer_of(part.specs[-1].name)
        delta = by_layer.get(layer) if layer is not None else None
        out.append(part if delta is None else _repaired(part, delta))
        if delta is not None and layer is not None and last[layer] == number:
            out.append(delta)
    return out


def _repaired(part: Part, delta: DeltaPart) -> Part:
    if delta.repair is None or not isinstance(part, BaseTensorPart):
        return part
    matrix = _FFN.search(part.tensor.name)
    if matrix is None:
        return part
    return dataclasses.replace(part, repair=delta.repair.matrices[matrix[1]])
