"""One completion, piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from sardine_gguf.claimed import OnEvaluated
from sardine_gguf.logprobs import TokenLogprob
from sardine_gguf.text_filter import TextFilter
from sardine_gguf.token_loop import Channel, FinishReason, Timings, TokenLoop, common_prefix

__all__ = [
    "Channel",
    "FinishReason",
    "Generation",
    "TextFilter",
    "Timings",
    "TokenLoop",
    "common_prefix",
]


class Generation:
    """Iterates over (channel, text) pieces of one completion.

    Channels are "content", and "reasoning" for what stands between the think tokens, if any are given and
    `split_thoughts` is set; without it they are part of the content, the think tokens' names around them.
    When it is exhausted `finish_reason` says why; `timings` holds counts and times.

    It claims its context with the first piece. Whatever changes the context then, also another generation,
    goes first: the next piece of this one raises ContextChanged, or ValueError if the context was closed.
    Nothing waits for a generation that is left half read, closed or let go of.

    Args:
        loop: what it runs.
    """

    def __init__(self, loop: TokenLoop) -> None:
        # The generator refers to the loop and not to this: a cycle would keep the context until the garbage
        # collector runs.
        self._loop = loop
        self._pieces = loop.pieces()

    def __iter__(self) -> Iterator[tuple[Channel, str]]:
        return self

    def __next__(self) -> tuple[Channel, str]:
        return next(self._pieces)

    @property
    def on_evaluated(self) -> OnEvaluated | None:
        """Called after each evaluation with its tokens and their Routes; set it before the first piece.

        First comes the prompt but for what was cached (in one or more parts), then one by one the tokens of
        the text, thoughts among them, but for the last, which is not evaluated. What it raises ends the
        generation.
        """
        return self._loop.on_evaluated

    @on_evaluated.setter
    def on_evaluated(self, call: OnEvaluated | None) -> None:
        self._loop.on_evaluated = call

    def close(self) -> None:
        """Ends the generation; the session keeps what was evaluated."""
        self._pieces.close()

    def sampled_tokens(self) -> Generator[int, None, None]:
        """Runs it for the tokens alone, up to the one that ends the text; stop strings do nothing."""
        return self._loop.sampled_tokens()

    def take_logprobs(self) -> list[TokenLogprob]:
        """Tokens of the content given out since the last call."""
        return self._loop.take_logprobs()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None before."""
        return self._loop.finish_reason

    @property
    def met_end_token(self) -> bool:
        """Whether the last token was one that ends a text."""
        return self._loop.met_end_token

    @property
    def timings(self) -> Timings:
        """Counts and times so far."""
        return self._loop.timings

    @property
    def tokens(self) -> list[int]:
        """The tokens so far, thoughts and the one that ends the text among them."""
        return self._loop.tokens

    @property
    def prompt_entries(self) -> list[TokenLogprob]:
        """Log probabilities of the prompt's tokens, if they were asked for."""
        return self._loop.prompt_entries
