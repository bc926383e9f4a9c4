"""Log probabilities of tokens under the model's own distribution, before any sampling option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer.

    Attributes:
        data: its bytes.
        offset: characters of its channel's text before it.
        logprob: natural logarithm of its probability; None for the first of a prompt.
        top: the likeliest tokens there, as (bytes, logprob), likeliest first.
    """

    data: bytes
    offset: int
    logprob: float | None
    top: Sequence[tuple[bytes, float]]

    @property
    def text(self) -> str:
        """The bytes as text; parts of characters become U+FFFD."""
        return self.data.decode("utf-8", "replace")


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over [n_vocab], in float64."""
    x = logits.astype(np.float64)
    x -= x.max()
    return np.asarray(x - np.log(np.exp(x).sum()), np.float64)


def token_logprob(
    logits: NDArray[np.float32],
    token: int,
    n_top: int,
    piece: Callable[[int], bytes],
    offset: int = 0,
) -> TokenLogprob:
    """The chosen token and the n_top likeliest under logits [n_vocab]; equal ones by their ids."""
    values = log_softmax(logits)
    n = min(n_top, len(values))
    if n:
        least = np.partition(values, -n)[-n]
        above = np.flatnonzero(values >= least)
        ids = above[np.lexsort((above, -values[above]))][:n]
    else:
        ids = np.empty(0, np.intp)
    top = [(piece(int(i)), float(values[i])) for i in ids]
    return TokenLogprob(piece(token), offset, float(values[token]), top)


def completion_logprobs(tokens: Sequence[TokenLogprob], before: int) -> dict[str, Any]:
    """OpenAI's shape for text completions; `before` characters stand before the tokens' text.

    A top list also names the chosen token, so it may be longer by one.
    """
    tops: list[dict[str, float] | None] = []
    for t in tokens:
        if t.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for data, value in t.top:
            top.setdefault(data.decode("utf-8", "replace"), value)
        top.setdefault(t.text, t.logprob)
        tops.append(top)
    return {
        "tokens": [t.text for t in tokens],
        "text_offset": [before + t.offset for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": tops,
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's shape for chats."""

    def entry(data: bytes, value: float | None) -> dict[str, Any]:
        return {"token": data.decode("utf-8", "replace"), "logprob": value, "bytes": list(data)}

    content = [
        {**entry(t.data, t.logprob), "top_logprobs": [entry(d, v) for d, v in t.top]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}
