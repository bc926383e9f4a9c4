"""Where thoughts begin and end in a stream of tokens, and how many there may be."""

from __future__ import annotations

from collections.abc import Sequence


class ThoughtBudget:
    """Follows the tokens around thoughts; forces the closing one when the budget is spent.

    Args:
        think: ids of the tokens that open and close thoughts.
        budget: tokens of thought in all, the two around them not counted; -1 sets no limit, and 0 closes
            thoughts as soon as they are opened.
        prompt: what was evaluated before; if it opens thoughts at its end, the stream begins inside.

    Raises:
        ValueError: the budget is less than -1.
    """

    def __init__(self, think: tuple[int, int], budget: int, prompt: Sequence[int]) -> None:
        if budget < -1:
            raise ValueError(
                f"reasoning_budget is {budget}, expected 0 or more tokens, or -1 for no limit"
            )
        self._begin, self._end = think
        self._left = budget
        self.inside = next((t == think[0] for t in reversed(prompt) if t in think), False)

    def forced(self) -> int | None:
        """The token that must come next, None if the model may choose."""
        return self._end if self.inside and self._left == 0 else None

    def follow(self, token: int) -> None:
        """Takes note of a token of the stream, forced or chosen."""
        if token in (self._begin, self._end):
            self.inside = token == self._begin
        elif self.inside and self._left > 0:
            self._left -= 1
