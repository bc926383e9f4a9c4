"""The token loop: evaluate, sample, turn bytes into whole characters, stop where asked."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sardine_gguf._native import Model, Sampler, Session
from sardine_gguf.errors import ContextOverflow

FinishReason = Literal["stop", "length"]
Channel = Literal["content", "reasoning"]


@dataclass
class Timings:
    """Seconds and token counts of one generation."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens evaluated a second (cached ones do not count); 0 if none were."""
        n = self.prompt_tokens - self.cached_tokens
        return n / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def completion_per_second(self) -> float:
        """Tokens generated a second, the first (which the prompt's evaluation gives) left out."""
        n = self.completion_tokens - 1
        return n / self.completion_seconds if n > 0 and self.completion_seconds > 0 else 0.0


class TextFilter:
    """Bytes in, text out: holds back incomplete characters and what may become a stop string.

    `text` pieces joined equal the bytes decoded as UTF-8, up to the first stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if any(not s for s in stop):
            raise ValueError("a stop string is empty")
        self._stop = tuple(stop)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self.stopped = False

    def push(self, data: bytes, final: bool = False) -> str:
        """Text that is certain after these bytes. After a stop string `stopped` is True."""
        if self.stopped:
            return ""
        text = self._held + self._decode(data, final)
        ends = [i for i in (text.find(s) for s in self._stop) if i >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = 0 if final else self._partial_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _partial_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stop):
                return n
        return 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common start of two token lists."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class Generation:
    """Iterates over (channel, text) pieces of one completion.

    Channels are "content", and "reasoning" for what stands between the think tokens, if any are given.
    When it is exhausted `finish_reason` says why; `timings` holds counts and times.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        prompt: list[int],
        sampler: Sampler,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        think: tuple[int, int] | None = None,
        reuse_prefix: bool = False,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("the prompt is empty: there is nothing to continue")
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(
                f"max_tokens is {max_tokens}, expected 0 or more, or None for no limit"
            )
        if len(prompt) > session.n_ctx:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens, more than n_ctx {session.n_ctx}: "
                "load with a larger n_ctx or shorten the prompt"
            )
        self._model, self._session, self._sampler = model, session, sampler
        self._prompt, self._max_tokens = prompt, max_tokens
        self._stop, self._think = tuple(stop), think
        self._reuse_prefix, self._on_token = reuse_prefix, on_token
        self.finish_reason: FinishReason | None = None
        self.timings = Timings(prompt_tokens=len(prompt))
        self.tokens: list[int] = []
        self._since: int | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[tuple[Channel, str]]:
        return self

    def __next__(self) -> tuple[Channel, str]:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the generation; the session keeps what was evaluated."""
        self._pieces.close()

    def _evaluate_prompt(self) -> None:
        known = self._session.tokens
        keep = common_prefix(known, self._prompt)
        if not self._reuse_prefix and (keep < len(known) or keep == len(self._prompt)):
            keep = 0
        keep = min(keep, len(self._prompt) - 1)  # the last token's logits are needed
        self._session.truncate(keep)
        self.timings.cached_tokens = keep
        start = time.perf_counter()
        self._session.decode(self._prompt[keep:], self._since)
        self.timings.prompt_seconds = time.perf_counter() - start

    def _run(self) -> Generator[tuple[Channel, str], None, None]:
        self._since = self._session.n_cancels  # a cancel() from now on ends this generation
        self._evaluate_prompt()
        start = time.perf_counter()
        channel: Channel = "content"
        text = TextFilter(self._stop)
        ended = False
        for token in self._sampled_tokens():
            self.timings.completion_seconds = time.perf_counter() - start
            ended = self._model.is_end(token)
            if ended:
                break
            if self._think and token in self._think:
                if piece := text.push(b"", final=True):
                    yield channel, piece
                channel = "reasoning" if token == self._think[0] else "content"
                # Stop strings end the answer, not the thoughts.
                text = TextFilter(() if channel == "reasoning" else self._stop)
            elif piece := text.push(self._model.piece(token)):
                yield channel, piece
            if text.stopped:
                break
        if piece := text.push(b"", final=True):
            yield channel, piece
        self.finish_reason = "stop" if ended or text.stopped else "length"

    def _sampled_tokens(self) -> Iterator[int]:
        """Tokens until max_tokens or the context's end; each is evaluated when the next is asked for."""
        while self._max_tokens is None or len(self.tokens) < self._max_tokens:
            if self.tokens:
                if self._session.n_tokens >= self._session.n_ctx:
                    return
                self._session.decode(self.tokens[-1:], self._since)
            token = self._sampler.sample(self._session)
            self.tokens.append(token)
            self.timings.completion_tokens += 1
            if self._on_token:
                self._on_token(token)
            yield token
