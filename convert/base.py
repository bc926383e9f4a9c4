"""What a conversion needs to know about its base model, from a folder or from a GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sardine_gguf.errors import FormatError

from .arrays import F32Array
from .gguf_file import Metadata, Part, pack_metadata

# (layer, "gate" | "up" | "down", flat element numbers) -> the base's values there.
Sampler = Callable[[int, str, Sequence[int]], F32Array]


@dataclass
class Base:
    """A base model, nothing of its weights loaded.

    hidden is H, inner I, layers L. inputs are the files that are read. sample is there where the
    base's exact weights can be looked up.
    """

    metadata: Metadata
    parts: list[Part]
    hidden: int
    inner: int
    layers: int
    alignment: int
    inputs: list[Path]
    out_type: str | None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sample: Sampler | None = None


def check_packable(metadata: Metadata, file: Path) -> None:
    """Raises FormatError for a value that its GGUF type cannot hold.

    For metadata made from JSON and the like. There a lone surrogate is no byte that a GGUF file held
    (pack_metadata), but a text that is not Unicode.
    """
    for key, entry in metadata.items():
        try:
            for text in (key, *(entry[1] if isinstance(entry[1], list) else [entry[1]])):
                if isinstance(text, str):
                    text.encode("utf-8")
            pack_metadata({key: entry})
        except (ValueError, OverflowError, struct.error) as error:
            raise FormatError(
                f"{file}: {key} cannot be written as {entry[0]}: {error}", file=str(file), field=key
            ) from None
