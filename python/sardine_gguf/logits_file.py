"""llama.cpp's file of a base model's log probabilities, as its --kl-divergence-base writes and reads it.

"_logits_", then int32 n_ctx, n_vocab and n_chunk, the tokens as int32 [n_chunk, n_ctx], and for every scored
token of every chunk a row of 16-bit numbers: float32 scale and smallest log probability, then n_vocab numbers
q, padded to an even count; a log probability is smallest + scale * q. All little endian.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from sardine_gguf.convert.atomic import AtomicFile, check_destination, sweep
from sardine_gguf.errors import FormatError
from sardine_gguf.output_file import link_target
from sardine_gguf.scoring import Floats, scored

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8siii")
_RANGE = 16.0  # of a row's log probabilities; smaller ones are raised to its lower end


def row_numbers(n_vocab: int) -> int:
    """16-bit numbers in a row."""
    return 2 * ((n_vocab + 1) // 2) + 4


def encode_rows(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rows of logits [n, n_vocab] as the file has them, [n, row_numbers]."""
    top = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), top - np.float32(_RANGE))
    total = np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)
    scale = (top - low) / np.float32(65535)
    # Rows without a range worth a step: all 0. The inverse of a smaller scale may overflow.
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 1e-30)
    out = np.zeros((len(logits), row_numbers(logits.shape[1])), np.uint16)
    head = np.hstack([scale, low - top - np.log(total).astype(np.float32)])
    out[:, :4] = head.astype("<f4").view("<u2")
    out[:, 4 : 4 + logits.shape[1]] = np.rint(inverse * np.maximum(logits - low, 0))
    return out


def decode_rows(rows: NDArray[np.uint16], n_vocab: int) -> Floats:
    """Log probabilities [n, n_vocab] of rows of a file."""
    head = np.ascontiguousarray(rows[:, :4]).view("<f4")
    scale, low = head[:, :1], head[:, 1:]
    out: Floats = (scale * rows[:, 4 : 4 + n_vocab].astype(np.float32) + low).astype(np.float64)
    return out


class LogitsWriter:
    """Writes a file, which appears when it is complete or not at all.

    Args:
        path: the destination; a file that is there is replaced.
        chunks: the text's tokens, [n_chunk][n_ctx].
        inputs: files that must not be the destination.

    Raises:
        FormatError: the destination is a folder, a device or an input.
        OSError: it cannot be written.
    """

    def __init__(
        self, path: Path, n_vocab: int, chunks: Sequence[Sequence[int]], inputs: Sequence[Path]
    ) -> None:
        path = link_target(path)
        check_destination(path, inputs, force=True)
        sweep(path)
        self._tokens = np.array(chunks, "<i4")
        self._n_vocab = n_vocab
        self._file = AtomicFile(path)

    def __enter__(self) -> LogitsWriter:
        self._file.__enter__()
        n_chunk, n_ctx = self._tokens.shape
        try:
            self._file.need(_file_size(n_ctx, self._n_vocab, n_chunk))
            self._file.write(_HEADER.pack(MAGIC, n_ctx, self._n_vocab, n_chunk))
            self._file.write(self._tokens.tobytes())
        except BaseException:
            self._file.__exit__(None, None, None)
            raise
        return self

    def write(self, logits: NDArray[np.float32]) -> None:
        """Appends rows of logits [n, n_vocab]."""
        self._file.write(encode_rows(logits).astype("<u2", copy=False).tobytes())

    def commit(self) -> None:
        """Puts the file in its place."""
        self._file.commit(lambda path: LogitsFile(path).close(), force=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)


def _file_size(n_ctx: int, n_vocab: int, n_chunk: int) -> int:
    rows = scored(n_ctx) * row_numbers(n_vocab)
    return _HEADER.size + n_chunk * (4 * n_ctx + 2 * rows)


class LogitsFile:
    """Reads a file, chunk after chunk.

    Attributes:
        n_ctx, n_vocab, n_chunk: of the header.
        chunks: the text's tokens, int32 [n_chunk, n_ctx].

    Raises:
        FormatError: it is no such file, or its size, a token or a row is not what it must be.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise self._fail("file", "this is no regular file")
        self._file = path.open("rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _fail(self, field: str, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}", file=str(self.path), field=field)

    def _read_header(self) -> None:
        head = self._file.read(_HEADER.size)
        if head[: len(MAGIC)] != MAGIC:
            raise self._fail(
                "magic",
                "this is no file of log probabilities (it does not begin with '_logits_'): "
                "make one with --save-all-logits",
            )
        if len(head) < _HEADER.size:
            raise self._fail("header", f"the file ends after {len(head)} bytes, within its header")
        _, self.n_ctx, self.n_vocab, self.n_chunk = _HEADER.unpack(head)
        for name, value, least in (
            ("n_ctx", self.n_ctx, 4),
            ("n_vocab", self.n_vocab, 1),
            ("n_chunk", self.n_chunk, 1),
        ):
            if value < least:
                raise self._fail(name, f"{name} is {value}, expected at least {least}")
        size = os.fstat(self._file.fileno()).st_size
        expected = _file_size(self.n_ctx, self.n_vocab, self.n_chunk)
        if size != expected:
            raise self._fail(
                "size",
                f"the file has {size} bytes, expected {expected} for {self.n_chunk} chunks of "
                f"{self.n_ctx} tokens and a vocabulary of {self.n_vocab}: it is cut or damaged",
            )
        data = self._file.read(4 * self.n_chunk * self.n_ctx)
        self.chunks = np.frombuffer(data, "<i4").reshape(self.n_chunk, self.n_ctx)
        if ((self.chunks < 0) | (self.chunks >= self.n_vocab)).any():
            raise self._fail("tokens", f"a token is outside the vocabulary of {self.n_vocab}")

    def read(self, n: int) -> Floats:
        """Log probabilities of the next n scored tokens, [n, n_vocab]."""
        width = row_numbers(self.n_vocab)
        data = self._file.read(2 * n * width)
        if len(data) != 2 * n * width:
            raise self._fail("rows", "the file became shorter while it was read")
        rows = np.frombuffer(data, "<u2").reshape(n, width)
        head = np.ascontiguousarray(rows[:, :4]).view("<f4")
        # A row's range is 16 as written, but its scale is rounded.
        if not (np.isfinite(head).all() and (head[:, 0] >= 0).all() and (head[:, 1] <= 0).all()):
            raise self._fail("rows", "a row's scale or smallest log probability is out of range")
        out = decode_rows(rows, self.n_vocab)
        with np.errstate(over="ignore"):
            total = np.exp(out).sum(axis=1)
        # Values raised to the lower end add exp(-16) each at most; rounding moves each by half a step.
        slack = 1e-3 + self.n_vocab * np.exp(-_RANGE)
        if not (abs(total - 1) <= slack).all():
            raise self._fail("rows", "a row's probabilities do not add up to 1")
        return out

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> LogitsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
