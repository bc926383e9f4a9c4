"""The loops over chunks behind sardine-perplexity: perplexity alone, or the divergence from a base."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from sardine_gguf.logits_file import LogitsFile, LogitsWriter
from sardine_gguf.model import Sardine
from sardine_gguf.perplexity_report import CHUNK_HEADER, chunk_line
from sardine_gguf.scoring import (
    LOG_PROB_FLOOR,
    Divergence,
    Floats,
    Perplexity,
    chunk_logits,
    log_softmax,
    negative_log_probs,
    row_blocks,
)


class Progress:
    """What is printed while chunks are evaluated."""

    def __init__(self, out: TextIO, n_chunks: int) -> None:
        self.out, self._n_chunks = out, n_chunks
        self._start = time.monotonic()
        self._done = 0

    def chunk(self, text: str, end: str) -> None:
        """Prints the figures after a chunk, after the first how long all will take."""
        if not self._done:
            seconds = time.monotonic() - self._start
            print(
                f"{seconds:.2f} seconds per chunk, ETA {seconds * self._n_chunks / 60:.2f} minutes",
                file=sys.stderr,
                flush=True,
            )
        self._done += 1
        print(text, end=end, file=self.out, flush=True)


def measure(
    model: Sardine, chunks: Sequence[Sequence[int]], writer: LogitsWriter | None, progress: Progress
) -> dict[str, Any]:
    """Perplexity over chunks; logits go to the writer, if there is one."""
    result = Perplexity()
    for i, chunk in enumerate(chunks):
        targets = np.array(chunk[len(chunk) // 2 + 1 :], np.int64)
        done = 0
        for logits in chunk_logits(model, chunk):
            result.add(negative_log_probs(logits, targets[done : done + len(logits)]))
            done += len(logits)
            if writer is not None:
                for rows in row_blocks(logits):
                    writer.write(logits[rows])
        progress.chunk(f"[{i + 1}]{result.value:.4f},", end="")
    print(file=progress.out)
    return {"tokens": result.count, "ppl": {"value": result.value, "error": result.error}}


class _Base:
    """The base's log probabilities, chunk after chunk, from a file or from a model that runs beside."""

    def __init__(self, source: Sardine | LogitsFile) -> None:
        self._source = source
        self.floor = LOG_PROB_FLOOR if isinstance(source, LogitsFile) else -np.inf
        self._rows: Iterator[Floats] = iter(())

    def begin(self, chunk: Sequence[int]) -> None:
        """Goes to the scored tokens of the next chunk."""
        if isinstance(self._source, Sardine):
            self._rows = self._run(self._source, chunk)

    @staticmethod
    def _run(model: Sardine, chunk: Sequence[int]) -> Iterator[Floats]:
        for logits in chunk_logits(model, chunk):
            for rows in row_blocks(logits):
                yield log_softmax(logits[rows])

    def next(self, n: int) -> Floats:
        """The next n rows. A model gives them in the blocks in which the other one's come."""
        if isinstance(self._source, LogitsFile):
            return self._source.read(n)
        found = next(self._rows)
        assert len(found) == n
        return found


def compare(
    model: Sardine,
    source: Sardine | LogitsFile,
    chunks: Sequence[Sequence[int]],
    progress: Progress,
) -> dict[str, Any]:
    """KL divergence from a base over chunks. A base that is a model has the batch size of the other."""
    result, base = Divergence(), _Base(source)
    print(CHUNK_HEADER, file=progress.out)
    for i, chunk in enumerate(chunks):
        targets = np.array(chunk[len(chunk) // 2 + 1 :], np.int64)
        base.begin(chunk)
        done = 0
        for logits in chunk_logits(model, chunk):
            for rows in row_blocks(logits):
                n = rows.stop - rows.start
                result.add(logits[rows], base.next(n), targets[done : done + n], base.floor)
                done += n
        progress.chunk(chunk_line(i + 1, result.summary()), end="\n")
    return result.summary()
