"""Writing the output: streamed, atomic, its header read back before it takes its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from . import native
from .atomic import AtomicFile, sweep
from .gguf_file import (
    Metadata,
    Part,
    TensorSpec,
    pack_header,
    pack_metadata,
    padded,
    stream,
)
from .srde_layer import SrdeLayer

# Called with (phase, bytes done, bytes in all, what): first for each layer whose positions and values
# are read (phase "reading"), then for each piece of a tensor that is written ("writing") and, with
# verify, read back ("verifying").
Progress = Callable[[str, int, int, str], None]


class Reading:
    """Reports the phase "reading": every layer's positions, then every layer's values."""

    def __init__(self, layers: Sequence[SrdeLayer], progress: Progress | None) -> None:
        self._progress, self._done = progress, 0
        self._total = sum(self._nbytes(layer) for layer in layers)

    @staticmethod
    def _nbytes(layer: SrdeLayer) -> int:
        return layer.n * (8 + 4 * (layer.atoms.shape[0] + len(layer.importance)))

    def positions(self, layer: SrdeLayer) -> None:
        """Before a layer's positions are read."""
        self._step(8 * layer.n, f"positions of layer {layer.index}")

    def values(self, layer: SrdeLayer) -> None:
        """Before a layer's values are read."""
        self._step(self._nbytes(layer) - 8 * layer.n, f"values of layer {layer.index}")

    def _step(self, nbytes: int, what: str) -> None:
        if self._progress is not None:
            self._progress("reading", self._done, self._total, what)
        self._done += nbytes


def write_file(
    path: Path,
    metadata: Metadata,
    parts: Sequence[Part],
    alignment: int,
    force: bool,
    progress: Progress | None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Writes a GGUF file atomically and reads its header back before it takes its place.

    check, if given, is called with the complete file then, and may raise to have it removed.
    """
    specs = [s for part in parts for s in part.specs]
    header = pack_header(metadata, specs, alignment)
    total = len(header) + sum(padded(s.nbytes, alignment) for s in specs)
    done = len(header)
    sweep(path)
    with AtomicFile(path) as file:
        file.need(total)
        file.write(header)
        for name, piece in stream(parts, alignment):
            file.write(piece)
            done += len(piece)
            if progress is not None:
                progress("writing", done, total, name)

        def verify(temp: Path) -> None:
            _verify(temp, metadata, specs, alignment, len(header), total)
            if check is not None:
                check(temp)

        file.commit(verify, force)


def _verify(
    path: Path, metadata: Metadata, specs: list[TensorSpec], alignment: int, start: int, size: int
) -> None:
    found = native.GgufFile(os.fsencode(path))
    offset, expected = start, []
    for s in specs:
        expected.append((s.name, s.type, s.ne, offset))
        offset += padded(s.nbytes, alignment)
    tensors = [(t.name, t.type, tuple(t.shape), t.offset) for t in found.tensors]
    if (
        path.stat().st_size != size
        or tensors != expected
        or pack_metadata(dict(found.kv)) != pack_metadata(metadata)
    ):
        raise OSError(
            f"{path}: the written file does not read back as it was written; is the disk sound?"
        )
