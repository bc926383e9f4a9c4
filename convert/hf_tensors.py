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
from .arrays import F32Array
from .gguf_file import TensorSpec, as_bytes, spec
from .hf_config import HfConfig
from .safetensors_file import StoredTensor

# Of float32 at a time for each thread, 16 of them at most: the rows stay in the cache on their way
# from the file to the quantizer and to the output, and Ctrl-C waits for no longer than a chunk.
CHUNK_BYTES = 8 << 20

_TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "vision_encoder.", "patch_merger.")


def _layer_shapes(c: HfConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    q, kv = c.heads * c.head_dim, c.heads_kv * c.head_dim
    return {
        "input_layernorm.weight": ("attn_norm.weight", (c.hidden,)),
        "self_attn.q_proj.weight": ("attn_q.weight", (q, c.hidden)),
        "self_attn.k_proj.weight": ("attn_k.weight", (kv, c.hidden)),
        "self_attn.v_proj.weight": ("attn_v.weight", (kv, c.hidden)),
        "self_attn.o_proj.weight": ("attn_output.weight", (c.hidden, q)),
        "post_attention_layernorm.weight": ("ffn_norm.weight", (c.hidden,)),
        "mlp.gate_proj.weight": ("ffn_gate.weight", (c.inner, c.hidden)),
        "mlp.up_proj.weight": ("ffn_up.weight", (c.inner, c.hidden)),
        "mlp.down_proj.weight": ("ffn_down.weight", (c.hidden, c.inner)),
    }


@dataclass(frozen=True)
class BaseTensor:
    """A stored tensor with its GGUF name. heads: rows are permuted per head (0: they are not)."""

    name: str
    stored: StoredTensor
    layer: int
    heads: int = 0

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
    found: dict[str, StoredTensor] = {}
    skipped: dict[str, int] = {}
    unknown: list[str] = []
    for name, tensor in stored.items():
        bare = name.removeprefix("model.") if config.wrapped else name
        part = next((p for p in _OTHER_PARTS if bare.startswith(p)), None)
        if config.wrapped and part:
            skipped[part.rstrip(".")] = skipped.get(part.rstrip("."), 0) + 1
            continue
        if name.endswith(".rotary_emb.inv_freq"):
            continue
        if name in _HEADS:
            key = "lm_head.weight"
        else:
            prefix = next((p for p in _TEXT_PREFIXES if name.startswith(p)), "")
            key = name[len(prefix) :]
            if not prefix:
                unknown.append(name)
                continue
        if key in found:
            raise _bad(folder, name, f"tensors {found[key].name!r} and {name!r} are the same one")
        found[key] = tensor

    wanted: dict[str, tuple[str, tuple[int, ...], int, int]] = {
        "embed_tokens.weight": ("token_embd.weight", (config.vocab, config.hidden), -1, 0)
    }
    for i in range(config.layers):
        for hf, (gguf, shape) in _layer_shapes(config).items():
            heads = {"attn_q.weight": config.heads, "attn_k.weight": config.heads_kv}.get(gguf, 0)
            wanted[f"layers.{i}.{hf}"] = (f"blk.{i}.{gguf}", shape, i, heads)
    wanted["norm.weight"] = ("output_norm.weight", (config.hidden,), -1, 0)
    if not _is_tied(config, found, folder):
        wanted["lm_head.weight"] = ("output.weight", (config.vocab, config.hidden), -1, 0)

    unknown += [t.name for k, t in found.items() if k not in wanted and k != "lm_head.weight"]
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
                f"{list(shape)} of config.json, found {list(tensor.shape)}",
            )
        if tensor.dtype is None or not tensor.dtype.is_float:
            raise _bad(
                folder,
                tensor.name,
                f"tensor {tensor.name!r}: type {tensor.type_name}, "
                "expected F32, F16, BF16 or F64 (quantized weights are not supported yet)",
            )
        tensors.append(BaseTensor(gguf_name, tensor, layer, heads))
    return tensors, skipped


def _is_tied(config: HfConfig, found: dict[str, StoredTensor], folder: Path) -> bool:
    head, embedding = found.get("lm_head.weight"), found.get("embed_tokens.weight")
    if not config.tied:
        return False
    if head is None or embedding is None or head.shape != embedding.shape:
        return head is None
    a, b = head.raw().view("u1"), embedding.raw().view("u1")
    if head.type_name == embedding.type_name and all(
        np.array_equal(a[i : i + 4096], b[i : i + 4096]) for i in range(0, len(a), 4096)
    ):
        return True
    raise _bad(
        folder,
        head.name,
        "tie_word_embeddings is true, but the output matrix "
        f"{head.name!r} is stored and differs from the embedding; correct config.json",
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

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The one tensor."""
        return (spec(self.tensor.name, self.ggml_type, *self.tensor.ne),)

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields the tensor in chunks of rows.

        Raises:
            FormatError: a weight is not finite, or too large for the type.
        """
        stored, heads = self.tensor.stored, self.tensor.heads
        assert stored.dtype is not None
        head_rows = stored.shape[0] // heads if heads else 0
        unit = max(1, head_rows)  # whole heads, because their rows change places
        chunk = CHUNK_BYTES * min(self.n_threads, 16)
        step = max(1, chunk // (4 * stored.shape[-1] * unit)) * unit
        for rows in stored.rows(step):
            yield self.tensor.name, as_bytes(self._encode(rows, stored.dtype.name, head_rows))

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
            stored, limit = self.tensor.stored, native.largest_value(self.ggml_type.name)
            raise FormatError(
                f"{stored.file}: tensor {stored.name!r} holds NaN, infinity or a value beyond "
                f"{limit:g}, the limit of {self.ggml_type.name}",
                file=str(stored.file),
                field=stored.name,
            )
        return encoded
