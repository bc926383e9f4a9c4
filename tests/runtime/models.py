"""Tiny models for the runtime's tests, and the figures by which outputs are compared."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_checkpoint import srde_checkpoint, tiny_base
from numpy.typing import NDArray
from sardine_gguf import Sardine
from sardine_gguf.convert import convert

VOCAB = 320
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-sardine"


@dataclass(frozen=True)
class TinyModel:
    """A base folder, a checkpoint for it, and both as one file."""

    base: Path
    srde: Path
    gguf: Path
    top_k: int

    @property
    def text_base(self) -> Path:
        """The folder of the text model alone, which transformers' causal model reads."""
        plain = self.base.with_name("text")
        return plain if plain.exists() else self.base

    def open(self, **options: Any) -> Sardine:
        """Opened for comparisons: float32 keys and values, one thread."""
        return Sardine(self.gguf, **{"kv_type": "f32", "n_threads": 1, **options})

    def converted(self, name: str, **options: Any) -> Path:
        """Another conversion of the same inputs, made once."""
        path = self.gguf.with_name(name)
        if not path.exists():
            convert(self.base, self.srde, path, n_threads=2, **options)
        return path


def make_model(
    folder: Path,
    *,
    top_k: int = 2,
    base: dict[str, Any] | None = None,
    srde: dict[str, Any] | None = None,
    out: dict[str, Any] | None = None,
) -> TinyModel:
    """Makes base, checkpoint and file in a folder.

    Args:
        base, srde, out: options of tiny_base, srde_checkpoint and convert.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = base or {}
    tiny_base(folder / "base", **base)
    if base.get("wrapped"):
        tiny_base(folder / "text", **{**base, "wrapped": ""})
    srde_checkpoint(folder / "srde.pt", folder / "base", top_k=top_k, **(srde or {}))
    _shift_values(folder / "srde.pt", 0.2)
    options = {"outtype": "f32", "delta_type": "f32", "n_threads": 2, **(out or {})}
    convert(folder / "base", folder / "srde.pt", folder / "model.gguf", **options)
    return TinyModel(folder / "base", folder / "srde.pt", folder / "model.gguf", top_k)


def _shift_values(path: Path, by: float) -> None:
    """Moves the experts' mean away from 0, without which the mode `gain` would do next to nothing."""
    saved = torch.load(path, weights_only=True)
    for layer in saved["srde_layers"].values():
        for name, tensor in layer.items():
            if name.removeprefix("module.") == "vocabulary.atoms":
                tensor += by  # the experts' copies share its storage
    torch.save(saved, path)


def random_tokens(n: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    """n token ids, BOS first."""
    return [1, *np.random.default_rng(seed).integers(8, vocab, n - 1).tolist()]


def text_of(model: Sardine, prompt: list[int], **options: Any) -> str:
    """The text that continues token ids."""
    return "".join(model.stream_generate(prompt, **options))


def nmse(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Squared error over the expected values' squares."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    return float(((a - b) ** 2).sum() / (b**2).sum())


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def kl_divergence(expected: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """KL(softmax(expected) || softmax(found)) of each row of logits."""
    p, q = log_softmax(expected), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(axis=-1)


@contextlib.contextmanager
def cancelling(m: Sardine) -> Iterator[None]:
    """Another thread keeps asking to cancel."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            m.cancel()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
