"""A base model from a GGUF file, copied byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from . import native, schema
from .base import Base
from .gguf_file import Metadata, TensorSpec
from .gguf_split import open_parts

ARCHITECTURES = ("mistral3", "llama")
COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class CopiedTensor:
    """A tensor whose bytes are copied from [offset, offset + nbytes) of a file."""

    file: Path
    tensor: TensorSpec
    offset: int

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The one tensor."""
        return (self.tensor,)

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields the tensor's bytes in pieces."""
        with self.file.open("rb", buffering=0) as file:
            at, end = self.offset, self.offset + self.tensor.nbytes
            while at < end:
                piece = os.pread(file.fileno(), min(COPY_BYTES, end - at), at)
                if not piece:
                    raise OSError(
                        f"{self.file}: ends at byte {at} within {self.tensor.name}; "
                        "was it changed during the conversion?"
                    )
                at += len(piece)
                yield self.tensor.name, piece


def read_gguf(path: Path) -> Base:
    """Reads the header of a GGUF file, or those of all parts of a split one.

    Args:
        path: the file, or any part. The tensors may have any type.

    Raises:
        FormatError: it is malformed, already holds experts, or has another architecture; or see
            gguf_split.open_parts.
        OSError: it cannot be read.
    """
    kv, files = open_parts(path)
    arch = _text(path, kv, "general.architecture")
    if arch not in ARCHITECTURES:
        raise _bad(
            path,
            "general.architecture",
            f"expected {' or '.join(ARCHITECTURES)}, found {arch[:60]!r}",
        )
    own = [k for k in kv if k.startswith(schema.KEY_PREFIX)]
    own += [t.name for _, f in files for t in f.tensors if schema.is_sardine_tensor(t.name)]
    if own:
        raise _bad(path, own[0], "is already a SaRDinE file, expected a base model without experts")
    if kv.get("general.type") == ("str", "adapter"):
        raise _bad(path, "general.type", "is an adapter file, expected a model")
    if kv.get(f"{arch}.expert_count", ("u32", 0))[1] != 0:
        raise _bad(
            path, f"{arch}.expert_count", "is a mixture-of-experts model, expected a dense one"
        )
    hidden = _count(path, kv, f"{arch}.embedding_length")
    inner = _count(path, kv, f"{arch}.feed_forward_length")
    layers = _count(path, kv, f"{arch}.block_count")
    return Base(
        metadata=kv,
        parts=[
            CopiedTensor(file, TensorSpec(t.name, t.type, tuple(t.shape), t.nbytes), t.offset)
            for file, header in files
            for t in header.tensors
        ],
        hidden=hidden,
        inner=inner,
        layers=layers,
        alignment=files[0][1].alignment,
        inputs=[file for file, _ in files],
        out_type=None,
    )


def check_runs(file: Path, shown: Path) -> None:
    """Checks that the runtime takes a file: every key and tensor that it needs, and no other tensor.

    Args:
        file: one file, no part of a split one. shown: the name to tell instead of the file's.

    Raises:
        FormatError: it does not.
        OSError: it cannot be read.
    """
    try:
        native.Model(os.fsencode(file))
    except FormatError as error:
        why = str(error).removeprefix(f"{file}: ")
        raise FormatError(
            f"{shown}: the runtime would refuse it: {why}", file=str(shown), field=error.field
        ) from None


def check_ffn(base: Base, layers: list[int], file: Path) -> None:
    """Checks that the layers to augment have the three matrices with the base's H and I.

    Raises:
        FormatError: a matrix is missing or has another shape.
    """
    shapes = {spec.name: spec.ne for part in base.parts for spec in part.specs}
    for layer in layers:
        for matrix in schema.MATRICES:
            n_rows, n_cols = schema.matrix_shape(matrix, base.hidden, base.inner)
            name = f"blk.{layer}.ffn_{matrix}.weight"
            if shapes.get(name) != (n_cols, n_rows):
                found = list(shapes[name]) if name in shapes else "no such tensor"
                raise _bad(file, name, f"expected the shape {[n_cols, n_rows]}, found {found}")


def _text(path: Path, kv: Metadata, key: str) -> str:
    kind, value = kv.get(key, ("nothing", None))
    if kind != "str":
        raise _bad(path, key, f"expected a text, found {kind}")
    return str(value)


def _count(path: Path, kv: Metadata, key: str) -> int:
    kind, value = kv.get(key, ("nothing", None))
    if kind not in ("u32", "i32", "u64", "i64", "u16", "i16", "u8", "i8"):
        raise _bad(path, key, f"expected an integer, found {kind}")
    if not 1 <= value < 2**31:
        raise _bad(path, key, f"expected 1 to 2^31 - 1, found {value}")
    return int(value)


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
