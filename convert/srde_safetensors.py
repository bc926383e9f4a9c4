"""A SRDE checkpoint as safetensors: one tensor per key, the keys of the layers' dicts joined by dots.

`srde_layers.0.router.gate.weight` or `0.router.gate.weight`, each also with `module.` before a part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.errors import FormatError

from .arrays import DType
from .file_tensor import FileTensor
from .reading import PIECE_BYTES
from .safetensors_file import StoredTensor, open_index, read_header

_LAYERS, _MODULE = "srde_layers.", "module."
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class SafetensorsTensor(FileTensor):
    """A tensor of a safetensors file, which has no checksums."""

    stored: StoredTensor
    kind: DType

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.stored.shape

    @property
    def dtype(self) -> DType:
        """The stored element type."""
        return self.kind

    def pieces(self) -> Iterator[NDArray[Any]]:
        """See FileTensor."""
        n = math.prod(self.shape)
        flat = dataclasses.replace(self.stored, shape=(n,))
        step = PIECE_BYTES // self.dtype.size
        for start in range(0, n, step):
            yield flat.columns(start, min(n, start + step))

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """See FileTensor."""
        return self.stored.columns(start, stop)

    def at(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[Any]:
        """See FileTensor."""
        return self.stored.elements(row * self.shape[1] + column)

    def verify(self) -> None:
        """There is no checksum."""

    def same_place(self, other: FileTensor) -> bool:
        """True if both are the same entry of the same file."""
        return isinstance(other, SafetensorsTensor) and self.stored == other.stored


def is_safetensors(path: Path) -> bool:
    """True if a checkpoint's name says that it is in this format."""
    return path.name.endswith((".safetensors", INDEX_SUFFIX))


def load(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Reads a checkpoint's headers.

    Args:
        path: a .safetensors file, or the .safetensors.index.json of one in several files.

    Returns:
        {"srde_layers": {layer: {key: tensor}}}, with an entry for each key that is of no layer, as
        the .pt format holds them; and the files.

    Raises:
        FormatError: malformed files, unknown element types, or keys of both spellings.
        OSError: a file cannot be read.
    """
    stored = open_index(path) if path.name.endswith(INDEX_SUFFIX) else read_header(path)
    bare = {name: name.removeprefix(_MODULE) for name in stored}
    prefix = _LAYERS if any(b.startswith(_LAYERS) for b in bare.values()) else ""
    layers: dict[str, dict[str, FileTensor]] = {}
    top: dict[str, Any] = {"srde_layers": layers}
    for name, tensor in stored.items():
        if not bare[name].startswith(prefix):
            if bare[name].partition(".")[0].isdigit():
                raise _bad(path, name, f"expected the prefix {_LAYERS} as other tensors have it")
            top[name] = tensor
            continue
        index, _, key = bare[name].removeprefix(prefix).removeprefix(_MODULE).partition(".")
        if not (index.isascii() and index.isdigit()) or not key:
            raise _bad(
                path, name, "is not a tensor of a SRDE layer, expected srde_layers.LAYER.NAME"
            )
        if tensor.dtype is None:
            raise _bad(
                path,
                name,
                f"type {tensor.type_name}, expected F32, F16, BF16 or F64, or integers for indices",
            )
        layer = layers.setdefault(index, {})
        key = key.removeprefix(_MODULE)
        if key in layer:
            raise _bad(path, name, "occurs twice, with and without the prefix module.")
        layer[key] = SafetensorsTensor(tensor, tensor.dtype)
    files = {t.file for t in stored.values()} | {path}
    return top, sorted(files)


def _bad(path: Path, name: str, message: str) -> FormatError:
    return FormatError(f"{path}: tensor {name[:120]!r}: {message}", file=str(path), field=name)
