"""Where thoughts begin and end in a stream of tokens, and how many there may be."""

from __future__ import annotations

from collections.abc import Sequence

from sardine_gguf.arguments import integer


class ThoughtBudget:
    """Follows the tokens around thoughts; forces the closing one when the budget is spent.

    Args:
        think: ids of the tokens that open and close thoughts.
        budget: tokens of thought in all, the two around them not counted (an opening one inside of thoughts
            is a thought); -1 sets no limit, and 0 closes thoughts as soon as they are opened. Once it is
            spent no thoughts are opened again.
        prompt: what was evaluated before; if it opens thoughts at its end, the stream begins inside.

    Raises:
        TypeError: the budget is no whole number.
        ValueError: the budget is less than -1.
    """

    def __init__(self, think: tuple[int, int], budget: int, prompt: Sequence[int]) -> None:
        self._left = integer(
            "reasoning_budget", budget, "a number of tokens, or -1 for no limit", least=-1
        )
        self._begin, self._end = think
        self.inside = next((t == think[0] for t in reversed(prompt) if t in think), False)
        self._opened = self.inside

    def forced(self) -> int | None:
        """The token that must come next, None if the model may choose."""
        return self._end if self.inside and self._left == 0 else None

    def never(self) -> int | None:
        """The token that must not come next: the opening one, when the budget is spent."""
        return self._begin if self._opened and self._left == 0 else None

    def follow(self, token: int) -> None:
        """Takes note of a token of the stream, forced or chosen."""
        if token == self._end:
            self.inside = False
        elif token == self._begin and not self.inside:
            self.inside = self._opened = True
        elif self.inside and self._left > 0:
            self._left -= 1
