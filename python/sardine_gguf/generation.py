"""One completion, piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterator

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

    The context is held until the generation ends, is closed or is let go of.

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
