"""Perplexity and KL divergence over a text, by the rules of llama.cpp's perplexity tool.

The text's tokens are cut into chunks of n_ctx. Each is evaluated alone, its first token replaced by BOS where
the model wants one, and the tokens of its second half but the first are scored: n_ctx - 1 - n_ctx // 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sardine_gguf.errors import SardineError
from sardine_gguf.model import Sardine

Floats = NDArray[np.float64]

# Entries of a base below this do not count in a divergence: a logits file does not hold them exactly.
LOG_PROB_FLOOR = -16.0


def scored(n_ctx: int) -> int:
    """Tokens that are scored in a chunk."""
    return n_ctx - 1 - n_ctx // 2


def cut(tokens: Sequence[int], n_ctx: int, n_chunks: int = -1) -> list[list[int]]:
    """Whole chunks of a text's tokens, all or the first n_chunks.

    Raises:
        ValueError: n_ctx is too small, or the text is shorter than two chunks.
    """
    if n_ctx < 4:
        raise ValueError(f"the context is {n_ctx} tokens, expected at least 4")
    if n_chunks == 0 or n_chunks < -1:
        raise ValueError(f"the number of chunks is {n_chunks}, expected at least 1, or -1 for all")
    if len(tokens) < 2 * n_ctx:
        raise ValueError(
            f"the text has {len(tokens)} tokens, expected at least {2 * n_ctx}, twice the context: "
            "take a longer text or a smaller -c"
        )
    most = len(tokens) // n_ctx
    n = most if n_chunks < 0 else min(n_chunks, most)
    return [list(tokens[i * n_ctx : (i + 1) * n_ctx]) for i in range(n)]


def chunk_logits(model: Sardine, chunk: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits that predict the scored tokens of a chunk, in blocks of rows, float32 [n, n_vocab].

    The chunk is evaluated in batches from its first token to its last, as llama.cpp does it: other batches
    would round activations elsewhere.
    """
    first, last = len(chunk) // 2, len(chunk) - 1
    tokens = list(chunk)
    if model.model.add_bos and model.model.bos >= 0:
        tokens[0] = model.model.bos
    model.reset()
    step = model.session.n_batch
    for begin in range(0, len(tokens), step):
        batch = tokens[begin : begin + step]
        if begin + len(batch) <= first:
            model.session.decode(batch)
            continue
        logits = model.eval(batch)[max(0, first - begin) : last - begin]
        if not np.isfinite(logits).all():
            raise SardineError(
                f"{model.model.path}: the model gave a logit that is not finite: its weights are damaged"
            )
        if len(logits):
            yield logits


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    """Of each row."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def row_blocks(logits: NDArray[np.float32]) -> Iterator[slice]:
    """Slices of rows whose float64 copies stay near 32 MiB."""
    step = max(1, (32 << 20) // (8 * logits.shape[1]))
    for begin in range(0, len(logits), step):
        yield slice(begin, min(begin + step, len(logits)))


def negative_log_probs(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Floats:
    """-log p of each row's target, in nats."""
    parts = []
    for rows in row_blocks(logits):
        log_p = log_softmax(logits[rows])
        parts.append(-log_p[np.arange(len(log_p)), targets[rows]])
    return np.concatenate(parts)


def mean_and_error(values: Floats) -> tuple[float, float]:
    """The mean and its standard error, which is 0 for up to 10 values."""
    mean = float(values.mean())
    variance = float((values * values).mean()) - mean * mean
    return mean, math.sqrt(variance / (len(values) - 1)) if variance > 0 and len(
        values
    ) > 10 else 0.0


@dataclass
class Perplexity:
    """Of the tokens scored so far."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, nll: Floats) -> None:
        """Takes negative log probabilities in."""
        self.count += len(nll)
        self.total += float(nll.sum())
        self.squares += float((nll * nll).sum())

    @property
    def value(self) -> float:
        """exp of the mean negative log probability."""
        return _exp(self.total / self.count)

    @property
    def error(self) -> float:
        """The value's standard error."""
        mean = self.total / self.count
        variance = self.squares / self.count - mean * mean
        return self.value * math.sqrt(variance / (self.count - 1)) if variance > 0 else 0.0


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


class Divergence:
    """A model Q against a base, token by token."""

    def __init__(self) -> None:
        names = ("nll", "nll_base", "kld", "p_diff", "same_top")
        self._parts: dict[str, list[Floats]] = {name: [] for name in names}

    def _all(self, name: str) -> Floats:
        parts = self._parts[name]
        if len(parts) != 1:
            parts[:] = [np.concatenate([np.empty(0), *parts])]
        return parts[0]

    @property
    def nll(self) -> Floats:
        """Negative log probabilities of the text's tokens under Q, [n]."""
        return self._all("nll")

    @property
    def nll_base(self) -> Floats:
        """The same under the base."""
        return self._all("nll_base")

    @property
    def kld(self) -> Floats:
        """KL(base || Q) of the next token's distribution, in nats, [n]."""
        return self._all("kld")

    @property
    def p_diff(self) -> Floats:
        """Probability of the text's token under Q less that under the base, [n]."""
        return self._all("p_diff")

    @property
    def same_top(self) -> Floats:
        """1 where both find the same token likeliest, else 0, [n]."""
        return self._all("same_top")

    def add(
        self,
        logits: NDArray[np.float32],
        base_log_probs: Floats,
        targets: NDArray[np.int64],
        floor: float = -math.inf,
    ) -> None:
        """Takes rows in.

        Args:
            logits: Q's, [n, n_vocab].
            base_log_probs: the base's, [n, n_vocab].
            targets: the text's tokens, [n].
            floor: entries of the base that are not above it do not count in the divergence.
        """
        log_p = log_softmax(logits)
        rows = np.arange(len(targets))
        counted = np.where(base_log_probs > floor, np.exp(base_log_probs), 0.0)
        nll, nll_base = -log_p[rows, targets], -base_log_probs[rows, targets]
        new = {
            "nll": nll,
            "nll_base": nll_base,
            "kld": (counted * (base_log_probs - log_p)).sum(axis=1),
            "p_diff": np.exp(-nll) - np.exp(-nll_base),
            "same_top": (logits.argmax(axis=1) == base_log_probs.argmax(axis=1)).astype(np.float64),
        }
        for name, values in new.items():
            self._parts[name].append(values)

    @property
    def count(self) -> int:
        """Tokens compared."""
        return len(self.kld)

    def summary(self) -> dict[str, Any]:
        """Every figure of llama.cpp's report; those with an error are {"value": ..., "error": ...}."""
        log_ppl, log_ppl_error = mean_and_error(self.nll)
        log_base, log_base_error = mean_and_error(self.nll_base)
        covariance = self._covariance()
        ppl, base = _exp(log_ppl), _exp(log_base)
        log_ratio = log_ppl - log_base
        log_ratio_error = _root(log_ppl_error**2 + log_base_error**2 - 2 * covariance)
        ppl_error, base_error = ppl * log_ppl_error, base * log_base_error
        spread = log_ppl_error * log_base_error
        kld, kld_error = mean_and_error(self.kld)
        dp, dp_error = mean_and_error(self.p_diff)
        square, square_error = mean_and_error(self.p_diff**2)
        rms = math.sqrt(square)
        same = float(self.same_top.mean())
        return {
            "tokens": self.count,
            "ppl": _with_error(ppl, ppl_error),
            "ppl_base": _with_error(base, base_error),
            "ln_ppl_correlation": covariance / spread if spread else None,
            "ln_ppl_ratio": _with_error(log_ratio, log_ratio_error),
            "ppl_ratio": _with_error(_exp(log_ratio), _exp(log_ratio) * log_ratio_error),
            "ppl_difference": _with_error(
                ppl - base,
                _root(ppl_error**2 + base_error**2 - 2 * ppl * base * covariance),
            ),
            "kld": _with_error(kld, kld_error),
            "kld_percentiles": _percentiles(
                self.kld, (100, 99.9, 99, 95, 90, 50, 10, 5, 1, 0.1, 0)
            ),
            "p_diff": _with_error(dp, dp_error),
            "p_diff_percentiles": _percentiles(
                self.p_diff, (100, 99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1, 0)
            ),
            "p_diff_rms": _with_error(rms, 0.5 / rms * square_error if rms else 0.0),
            "same_top_p": _with_error(same, _root(same * (1 - same) / max(1, self.count - 1))),
        }

    def _covariance(self) -> float:
        """Of the means of ln PPL."""
        if self.count < 10:
            return 0.0
        mean = float((self.nll * self.nll_base).mean())
        return (mean - float(self.nll.mean()) * float(self.nll_base.mean())) / (self.count - 1)


def _with_error(value: float, error: float) -> dict[str, float]:
    return {"value": value, "error": error}


def _root(x: float) -> float:
    """The square root, 0 where rounding made x negative."""
    return math.sqrt(x) if x > 0 else 0.0


def _percentiles(values: Floats, percents: Sequence[float]) -> dict[str, float]:
    found = np.percentile(values, percents)
    return {str(p): float(v) for p, v in zip(percents, found, strict=True)}
