"""What is in a file: facts from its header and from small tensors, without reading weights or values."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import gguf

from sardine_gguf.packed_file import MATRICES, PackedFile, is_expert_tensor

_TYPE_NAMES = {int(t): t.name.lower() for t in gguf.GGMLQuantizationType}
_GROUPS = {"weight": "router", "mean": "router", "row_ptr": "index", "col": "index"}
_MAX = 2**31 - 1


@dataclass(frozen=True)
class TypeFacts:
    """Tensors of one type, and their bytes."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class BaseFacts:
    """The base model; parameters is 0 and types empty in an adapter file, which does not hold it."""

    name: str
    architecture: str
    layers: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    vocab_size: int
    parameters: int
    types: dict[str, TypeFacts]


@dataclass(frozen=True)
class MatrixFacts:
    """Positions of one matrix; density is their share of its elements, 0 to 1."""

    positions: int
    density: float


@dataclass(frozen=True)
class LayerFacts:
    """An augmented layer. gains: 1 + mean of each expert, which the mode "gain" mixes."""

    layer: int
    positions: int
    density: float
    matrices: dict[str, MatrixFacts]
    gains: list[float | None]


@dataclass(frozen=True)
class ExpertFacts:
    """The experts. values: stored numbers, one for each position and expert. shared_types: of the part that
    every mode adds (compensation "extracted"), else empty."""

    version: int
    count: int
    used_count: int
    names: list[str]
    mode: str
    block_columns: int
    compensation: str
    value_types: list[str]
    shared_types: list[str]
    positions: int
    density: float
    values: int
    layers: list[LayerFacts]


@dataclass(frozen=True)
class FileFacts:
    """A file. kind: "model" (base and experts), "base", "adapter". bytes: of its parts, padding included."""

    file: str
    size: int
    kind: str
    base: BaseFacts
    experts: ExpertFacts | None
    bytes: dict[str, int]


def gather(file: PackedFile) -> FileFacts:
    """The facts of an opened file.

    Raises:
        FormatError: a key or a tensor's shape is not what it must be.
    """
    return FileFacts(
        file=printable(os.fsdecode(file.path)),
        size=len(file.data),
        kind=file.kind,
        base=_base(file),
        experts=_experts(file) if file.kind != "base" else None,
        bytes=_bytes(file),
    )


def _base(file: PackedFile) -> BaseFacts:
    p = file.prefix
    heads = file.integer(p + "attention.head_count", _MAX)
    name_keys = ("general.base_model.0.name", "general.name")
    names = [file.header.get(k) for k in (name_keys if file.kind == "adapter" else name_keys[1:])]
    types: dict[str, TypeFacts] = {}
    parameters = 0
    for tensor in file.header.tensors:
        if is_expert_tensor(tensor.name):
            continue
        parameters += math.prod(tensor.shape)
        kind = _TYPE_NAMES.get(tensor.type, f"type {tensor.type}")
        before = types.get(kind, TypeFacts(0, 0))
        types[kind] = TypeFacts(before.tensors + 1, before.bytes + tensor.nbytes)
    if file.kind == "adapter":
        vocab = file.integer(p + "vocab_size", _MAX)
    else:
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise file.bad("token_embd.weight", "there is no such matrix")
        vocab = int(embedding.shape[1])
    return BaseFacts(
        name=printable(next((n for n in names if isinstance(n, str)), "unnamed")),
        architecture=file.arch,
        layers=file.n_layers,
        embedding_length=file.hidden,
        feed_forward_length=file.inner,
        head_count=heads,
        head_count_kv=file.integer(p + "attention.head_count_kv", _MAX, heads),
        vocab_size=vocab,
        parameters=parameters,
        types=dict(sorted(types.items(), key=lambda item: -item[1].bytes)),
    )


def _experts(file: PackedFile) -> ExpertFacts:
    size = file.hidden * file.inner
    value_types: list[str] = []
    shared_types: list[str] = []
    layers = []
    for layer in file.layers:
        matrices = {}
        for name in MATRICES:
            packed = file.matrix(layer, name)
            n = packed.n if packed else 0
            matrices[name] = MatrixFacts(n, n / size)
            if packed and packed.value_type not in value_types:
                value_types.append(packed.value_type)
            shared = packed.shared if packed else None
            if shared and shared.value_type not in shared_types:
                shared_types.append(shared.value_type)
        n = sum(m.positions for m in matrices.values())
        file.router(layer)
        gains = [_finite(1 + float(mean)) for mean in file.mean(layer)]
        layers.append(LayerFacts(layer, n, n / (3 * size), matrices, gains))
    total = sum(layer.positions for layer in layers)
    return ExpertFacts(
        version=file.version,
        count=file.n_experts,
        used_count=file.top_k,
        names=[printable(name) for name in file.names],
        mode=file.mode,
        block_columns=file.block_columns,
        compensation=file.compensation,
        value_types=value_types,
        shared_types=shared_types,
        positions=total,
        density=total / (3 * size * len(layers)),
        values=total * file.n_experts,
        layers=layers,
    )


def _bytes(file: PackedFile) -> dict[str, int]:
    tensors = file.header.tensors
    ends = [t.offset for t in tensors[1:]] + [len(file.data)]
    header = tensors[0].offset if tensors else len(file.data)
    sizes = {"base": 0, "index": 0, "values": 0, "shared": 0, "router": 0, "header": header}
    for tensor, end in zip(tensors, ends, strict=bool(tensors)):
        part = tensor.name.rsplit(".", 1)[-1]
        group = "shared" if part.startswith("shared") else _GROUPS.get(part, "values")
        sizes[group if is_expert_tensor(tensor.name) else "base"] += end - tensor.offset
    return {name: n for name, n in sizes.items() if n or name in ("base", "header")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def printable(text: str) -> str:
    """One line without control characters; bytes that were not UTF-8 as replacement characters."""
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in clean)
