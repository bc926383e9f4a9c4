"""The token loop: evaluate, sample, turn bytes into whole characters, stop where asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sardine_gguf._native import Model, Sampler
from sardine_gguf.arguments import integer
from sardine_gguf.claimed import CLOSED, ClaimedContext, OnEvaluated
from sardine_gguf.errors import ContextOverflow
from sardine_gguf.expert_settings import ExpertSettings
from sardine_gguf.logprobs import TokenLogprob, token_logprob
from sardine_gguf.open_model import OpenModel
from sardine_gguf.options import token_limit
from sardine_gguf.text_filter import TextFilter
from sardine_gguf.thoughts import ThoughtBudget

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


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common start of two token lists."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


class TokenLoop:
    """What a Generation runs.

    Args:
        context: what evaluates; not claimed before the first token.
        prompt: token ids that take the context's place.
        sampler: draws the tokens.
        max_tokens: None, or a negative number, goes on to the end of the context.
        stop: texts that end the content.
        think: ids of the tokens around thoughts.
        thoughts: counts them; None sets no limit.
        reuse_prefix: keep the evaluated tokens that the prompt begins with.
        on_token: called with each token; what it raises ends the generation.
        logprobs: how many of the likeliest tokens `take_logprobs` tells of each token of the content;
            None tells nothing.
        prompt_logprobs: tell them of the prompt too, in `prompt_entries`; evaluates all of it anew.
        experts: what the context's experts are set to when it begins; None leaves them.

    Attributes:
        on_evaluated: called after each evaluation with its tokens and their routes: what of the prompt is
            evaluated (in one or more parts), then each token of the text but the last. What it raises ends
            the generation.
    """

    def __init__(
        self,
        context: OpenModel,
        prompt: list[int],
        sampler: Sampler,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        think: tuple[int, int] | None = None,
        split_thoughts: bool = True,
        thoughts: ThoughtBudget | None = None,
        reuse_prefix: bool = False,
        on_token: Callable[[int], None] | None = None,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        experts: ExpertSettings | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("the prompt is empty: there is nothing to continue")
        if logprobs is not None:
            integer("logprobs", logprobs, "a number of tokens, or None", least=0)
        self._n_ctx = context.session.n_ctx
        if len(prompt) > self._n_ctx:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens, more than n_ctx {self._n_ctx}: "
                "load with a larger n_ctx or shorten the prompt"
            )
        TextFilter(stop)  # raises now rather than at the first piece
        self._context = context
        self._sampler: Sampler | None = sampler
        self._claimed: ClaimedContext | None = None
        self.on_evaluated: OnEvaluated | None = None
        self._prompt, self._max_tokens = prompt, token_limit(max_tokens)
        self._stop, self._think, self._split_thoughts = tuple(stop), think, split_thoughts
        self._thoughts = thoughts or ThoughtBudget(think or (-1, -1), -1, prompt)
        self._reuse_prefix, self._on_token, self._experts = reuse_prefix, on_token, experts
        self.finish_reason: FinishReason | None = None
        self.met_end_token = False
        self.timings = Timings(prompt_tokens=len(prompt))
        self.tokens: list[int] = []
        self.prompt_entries: list[TokenLogprob] = []
        self._n_top, self._prompt_logprobs = logprobs, prompt_logprobs
        self._waiting: list[TokenLogprob] = []  # their text is held back
        self._ready: list[TokenLogprob] = []
        self._logits: NDArray[np.float32] | None = None  # that the last token was drawn from
        self._barred = False  # no token was left but one that must not come
        sampler.accept_prompt(prompt)

    def take_logprobs(self) -> list[TokenLogprob]:
        """Tokens of the content given out since the last call."""
        taken, self._ready = self._ready, []
        return taken

    def _settle(self, text: TextFilter, final: bool) -> None:
        """Moves on the tokens whose text begins inside of what was given out; at the end, all but stopped."""
        while self._waiting and (
            self._waiting[0].offset < text.emitted or (final and not text.stopped)
        ):
            self._ready.append(self._waiting.pop(0))
        if final:
            self._waiting.clear()

    def let_go(self) -> None:
        """Frees what it holds of the model; after the context was closed."""
        self._sampler = None

    @property
    def _model(self) -> Model:
        return self._context.model

    def _begin(self) -> ClaimedContext:
        if self._claimed is not None:
            raise ValueError("this generation has begun already: start another one")
        self._claimed = ClaimedContext(self._context, self.on_evaluated)
        self._evaluate_prompt(self._claimed)
        return self._claimed

    def _evaluate_prompt(self, context: ClaimedContext) -> None:
        if self._experts is not None:
            context.steer(self._experts)
        if self._prompt_logprobs:
            return self._evaluate_whole_prompt(context)
        known = context.tokens
        keep = common_prefix(known, self._prompt)
        if not self._reuse_prefix and (keep < len(known) or keep == len(self._prompt)):
            keep = 0
        keep = min(keep, len(self._prompt) - 1)  # the last token's logits are needed
        context.truncate(keep)
        self.timings.cached_tokens = keep
        start = time.perf_counter()
        context.decode(self._prompt[keep:])
        self.timings.prompt_seconds = time.perf_counter() - start

    def _evaluate_whole_prompt(self, context: ClaimedContext, step: int = 64) -> None:
        """In steps, because the logits of all positions of a long prompt may not fit in memory."""
        context.truncate(0)
        start = time.perf_counter()
        text = TextFilter()
        skip = int(self._prompt[0] == self._model.bos)
        logits = None
        for begin in range(0, len(self._prompt), step):
            part = self._prompt[begin : begin + step]
            rows = context.eval(part)
            for i, token in enumerate(part):
                before = rows[i - 1] if i else logits
                offset, data = text.position, self._model.piece(token)
                text.push(data)
                if begin + i < skip:
                    continue
                if begin + i == skip or before is None:  # OpenAI gives none for the first token
                    entry = TokenLogprob(data, offset, None, ())
                else:
                    entry = token_logprob(
                        before, token, self._n_top or 0, self._model.piece, offset
                    )
                self.prompt_entries.append(entry)
            logits = rows[-1].copy()
        self.timings.prompt_seconds = time.perf_counter() - start

    def pieces(self) -> Generator[tuple[Channel, str], None, None]:
        """Runs it for (channel, text)."""
        context = self._begin()
        start = time.perf_counter()
        inside = self._think is not None and self._split_thoughts and self._thoughts.inside
        channel: Channel = "reasoning" if inside else "content"
        text = TextFilter(() if inside else self._stop)
        for token in self._sampled_tokens(context):
            self.timings.completion_seconds = time.perf_counter() - start
            self.met_end_token = self._model.is_end(token)
            if self.met_end_token:
                break
            is_think = self._think is not None and token in self._think
            if is_think and self._split_thoughts:
                piece = text.push(b"", final=True)
                self._settle(text, final=True)
                if piece:
                    yield channel, piece
                channel = "reasoning" if self._thoughts.inside else "content"
                # Stop strings end the answer, not the thoughts.
                text = TextFilter(() if channel == "reasoning" else self._stop)
                continue
            data = self._model.piece(token, is_think)
            if self._logits is not None and channel == "content":
                self._waiting.append(
                    token_logprob(
                        self._logits, token, self._n_top or 0, self._model.piece, text.position
                    )
                )
            piece = text.push(data)
            self._settle(text, final=text.stopped)
            if piece:
                yield channel, piece
            if text.stopped:
                break
        piece = text.push(b"", final=True)
        self._settle(text, final=True)
        if piece:
            yield channel, piece
        stopped = self.met_end_token or self._barred or text.stopped
        self.finish_reason = "stop" if stopped else "length"

    def sampled_tokens(self) -> Generator[int, None, None]:
        """Runs it for the tokens alone, up to the one that ends the text; stop strings do nothing."""
        for token in self._sampled_tokens(self._begin()):
            if self._model.is_end(token):
                return
            sent: object = yield token
            if sent is not None:
                raise TypeError(
                    "send() is not supported: begin again with the tokens that you want"
                )

    def _sampled_tokens(self, context: ClaimedContext) -> Iterator[int]:
        """Tokens until max_tokens or the context's end; each is evaluated when the next is asked for."""
        while self._max_tokens is None or len(self.tokens) < self._max_tokens:
            if self.tokens:
                if len(self._prompt) + len(self.tokens) > self._n_ctx:
                    return
                context.decode(self.tokens[-1:])
            self._logits = context.last_logits() if self._n_top is not None else None
            token = self._next_token(context)
            if token is None:
                self._barred = True
                return
            self._thoughts.follow(token)
            self.tokens.append(token)
            self.timings.completion_tokens += 1
            if self._on_token:
                self._on_token(token)
            yield token

    def _next_token(self, context: ClaimedContext) -> int | None:
        """The token that must come, or one that is drawn; None if only one is left that must not come."""
        sampler = self._sampler
        if sampler is None:
            raise ValueError(CLOSED)
        forced = self._thoughts.forced()
        if forced is not None:
            sampler.accept_prompt([forced])
            return forced
        never = self._thoughts.never()
        token = context.sample(sampler, never)
        return None if token == never else token
