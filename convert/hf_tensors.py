"""The tensors of a Ministral 3 folder under their GGUF names, converted row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.errors import FormatError

from . import native, schema
from .arrays import DTYPES, F32Array, to_float32
from .compensation import MatrixRepair
from .gguf_file import TensorSpec, as_bytes, spec
from .hf_config import HfConfig
from .hf_quant import WeightSource, take_scales
from .safetensors_file import StoredTensor

# Of float32 at a time for each thread, 16 of them at most: the rows stay in the cache on their way
# from the file to the quantizer and to the output, and Ctrl-C waits for no longer than a chunk.
CHUNK_BYTES = 8 << 20


def _layer_shapes(c: HfConfig) -> dict[str, tuple[int, ...]]:
    q, kv = c.heads * c.head_dim, c.heads_kv * c.head_dim
    return {
        "attn_norm.weight": (c.hidden,),
        "attn_q.weight": (q, c.hidden),
        "attn_k.weight": (kv, c.hidden),
        "attn_v.weight": (kv, c.hidden),
        "attn_output.weight": (c.hidden, q),
        "ffn_norm.weight": (c.hidden,),
        "ffn_gate.weight": (c.inner, c.hidden),
        "ffn_up.weight": (c.inner, c.hidden),
        "ffn_down.weight": (c.hidden, c.inner),
    }


@dataclass(frozen=True)
class BaseTensor:
    """A stored tensor with its GGUF name. heads: rows are permuted per head (0: they are not)."""

    name: str
    source: WeightSource
    layer: int
    heads: int = 0

    @property
    def stored(self) -> StoredTensor:
        """The tensor in the file."""
        return self.source.stored

    @property
    def ne(self) -> tuple[int, ...]:
        """Shape in ggml's order."""
        return tuple(reversed(self.stored.shape))


def text_tensors(
    config: HfConfig, stored: dict[str, StoredTensor], folder: Path
) -> tuple[list[BaseTensor], dict[str, int]]:
    """Names and checks every tensor of the text model.

    Returns:
        The tensors in file order, and how many were skipped by prefix (vision parts).

    Raises:
        FormatError: a tensor is missing, unknown, or has another shape than the config says.
    """
    names = config.naming
    found: dict[str, StoredTensor] = {}
    skipped: dict[str, int] = {}
    unknown: list[str] = []
    for name, tensor in stored.items():
        bare = name.removeprefix("model.") if config.wrapped else name
        part = next((p for p in names.parts if bare.startswith(p)), None)
        if config.wrapped and part:
            skipped[part.rstrip(".")] = skipped.get(part.rstrip("."), 0) + 1
            continue
        if name.endswith(".rotary_emb.inv_freq"):
            continue
        stem, dot, last = name.rpartition(".")
        # The output matrix has other prefixes than the rest, and a scale has its matrix's.
        if f"{stem}.weight" in names.head:
            key = names.head[0].rpartition(".")[0] + dot + last
        else:
            prefix = next((p for p in names.prefixes if name.startswith(p)), None)
            if prefix is None:
                unknown.append(name)
                continue
            key = name[len(prefix) :]
        if key in found:
            raise _bad(folder, name, f"tensors {found[key].name!r} and {name!r} are the same one")
        found[key] = tensor
    scales = take_scales(found, config.quant)

    head = names.head[0]
    wanted: dict[str, tuple[str, tuple[int, ...], int, int]] = {
        names.embedding: ("token_embd.weight", (config.vocab, config.hidden), -1, 0)
    }
    for i in range(config.layers):
        for gguf, shape in _layer_shapes(config).items():
            heads = {"attn_q.weight": config.heads, "attn_k.weight": config.heads_kv}.get(gguf, 0)
            heads = heads if names.permuted else 0
            wanted[f"layers.{i}.{names.layer[gguf]}"] = (f"blk.{i}.{gguf}", shape, i, heads)
    wanted[names.norm] = ("output_norm.weight", (config.hidden,), -1, 0)
    if not _is_tied(config, found, folder):
        wanted[head] = ("output.weight", (config.vocab, config.hidden), -1, 0)

    unknown += [t.name for k, t in found.items() if k not in wanted and k != head]
    missing = [name for name in wanted if name not in found]
    if missing or unknown:
        raise _bad(folder, (missing + unknown)[0], _listing(missing, unknown))
    tensors = []
    for name, (gguf_name, shape, layer, heads) in wanted.items():
        tensor = found[name]
        if tensor.shape != shape:
            raise _bad(
                folder,
                tensor.name,
                f"tensor {tensor.name!r}: expected the shape "
                f"{list(shape)} of {config.path.name}, found {list(tensor.shape)}",
            )
        source = WeightSource(
            tensor, scales.get(name), config.quant.block if config.quant else None
        )
        source.check()
        tensors.append(BaseTensor(gguf_name, source, layer, heads))
    return tensors, skipped


def _is_tied(config: HfConfig, found: dict[str, StoredTensor], folder: Path) -> bool:
    head, embedding = found.get(config.naming.head[0]), found.get(config.naming.embedding)
    if not config.tied:
        return False
    if head is None or embedding is None or head.shape != embedding.shape:
        return head is None
    step = max(1, CHUNK_BYTES // (8 * max(1, head.shape[-1])))
    pairs = zip(head.rows(step), embedding.rows(step), strict=True)
    if head.type_name == embedding.type_name and all(
        np.array_equal(a.view("u1"), b.view("u1")) for a, b in pairs
    ):
        return True
    raise _bad(
        folder,
        head.name,
        "tied embeddings are configured, but the output matrix "
        f"{head.name!r} is stored and differs from the embedding; correct {config.path.name}",
    )


def _listing(missing: list[str], unknown: list[str]) -> str:
    parts = []
    for what, names in (("missing", missing), ("unknown", unknown)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            parts.append(f"{what} tensors: " + ", ".join(n[:120] for n in names[:8]) + more)
    return "; ".join(parts)


def _bad(folder: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{folder}: {message}", file=str(folder), field=field)


@dataclass(frozen=True)
class BaseTensorPart:
    """Converts one tensor while it is written, a chunk of rows at a time.

    importance: float32 [n_cols] that weighs the rounding errors of a row, or None.
    """

    tensor: BaseTensor
    ggml_type: schema.GgmlType
    n_threads: int
    importance: F32Array | None = None
    repair: MatrixRepair | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The one tensor."""
        return (spec(self.tensor.name, self.ggml_type, *self.tensor.ne),)

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields the tensor in chunks of rows.

        Raises:
            FormatError: a weight is not finite, or too large for the type.
        """
        source, heads = self.tensor.source, self.tensor.heads
        n_cols = source.stored.shape[-1]
        head_rows = source.stored.shape[0] // heads if heads else 0
        unit = max(1, head_rows)  # whole heads, because their rows change places
        chunk = CHUNK_BYTES * min(self.n_threads, 16)
        step = max(1, chunk // (4 * n_cols * unit)) * unit
        first = 0
        for rows, kind in source.chunks(step, self.n_threads):
            if self.repair is None:
                data = self._encode(rows, kind, head_rows)
            else:
                values = self.repair.before(first, self._checked(to_float32(rows, DTYPES[kind])))
                data = self._encode(values, "f32", head_rows)
                self.repair.after(data, self.ggml_type, n_cols, self.n_threads)
            first += len(rows)
            yield self.tensor.name, as_bytes(data)

    def _encode(self, rows: NDArray[Any], kind: str, head_rows: int) -> NDArray[np.uint8]:
        """Rows [n, n_cols] stored as kind in the file's type."""
        encoded = native.encode_rows(
            rows,
            kind,
            self.ggml_type.name,
            n_cols=rows.shape[1],
            head_rows=head_rows,
            importance=self.importance,
            n_threads=self.n_threads,
        )
        if encoded is None:
            raise self._too_large()
        return encoded

    def _checked(self, values: F32Array) -> F32Array:
        """The values, all of which the type can hold: a repair would take those that it cannot away."""
        # The negation also catches NaN, which compares false.
        if not float(np.abs(values).max(initial=0)) <= native.largest_value(self.ggml_type.name):
            raise self._too_large()
        return values

    def _too_large(self) -> FormatError:
        stored, limit = self.tensor.stored, native.largest_value(self.ggml_type.name)
        return FormatError(
            f"{stored.file}: tensor {stored.name!r} holds NaN, infinity or a value beyond "
            f"{limit:g}, the limit of {self.ggml_type.name}",
            file=str(stored.file),
            field=stored.name,
        )
