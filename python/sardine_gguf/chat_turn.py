"""One turn: a generation run to its end, or to Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sardine_gguf.generation import Generation


class Output(Protocol):
    """Where the pieces of an answer go."""

    def write(self, channel: str, text: str) -> None:
        """Takes a piece of the channel "content" or "reasoning"."""

    def end(self) -> None:
        """Ends the answer."""


@dataclass
class Turn:
    """What came of one generation: the answer, the thoughts before it, whether Ctrl-C stopped it.

    Attributes:
        first_seconds: from the start to the first piece of text; None if there was none.
    """

    generation: Generation
    answer: str = ""
    thoughts: str = ""
    interrupted: bool = False
    first_seconds: float | None = None

    @property
    def message(self) -> dict[str, str]:
        """The assistant's message. Thoughts stay in the context, which the next turn then continues."""
        message = {"role": "assistant", "content": self.answer}
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        return message


def run_turn(
    generation: Generation,
    output: Output,
    *,
    on_first: Callable[[], None] = lambda: None,
) -> Turn:
    """Runs a generation and prints it as it goes.

    Args:
        on_first: called once, before the first piece or, without any, at the end.
    """
    turn = Turn(generation)
    begin = time.perf_counter()
    try:
        for channel, text in generation:
            if turn.first_seconds is None:
                turn.first_seconds = time.perf_counter() - begin
                on_first()
            output.write(channel, text)
            if channel == "content":
                turn.answer += text
            else:
                turn.thoughts += text
    except KeyboardInterrupt:
        turn.interrupted = True
    finally:
        generation.close()
        if turn.first_seconds is None:
            on_first()
        output.end()
    return turn
