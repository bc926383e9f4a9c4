"""Experts on a terminal: text in the colours of those that wrote it, a legend, tables of shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sardine_gguf.expert_colours import expert_colours, sgr_colour
from sardine_gguf.routes import Routes
from sardine_gguf.terminal import RESET, clean, clean_line

Floats = NDArray[np.float64]
LEAST_SHARE = 0.005  # what a legend leaves out


class ExpertColours:
    """The colour of each expert, as escape sequences.

    Args:
        names: the model's experts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._keys = list(names)
        self.names = [clean_line(n) for n in names]
        self._sgr = [sgr_colour(c) for c in expert_colours(len(names))]

    def style(self, routes: Routes) -> str:
        """The sequence for the last token's leading expert, the one with the largest weight over all layers;
        "" where nothing is routed.
        """
        leading = int(routes.leading()[-1]) if routes.n_tokens else -1
        return self._sgr[leading] if leading >= 0 else ""

    def coloured(self, pieces: Iterable[tuple[str, Routes]]) -> Iterable[str]:
        """Each piece of text in the colour of what drew it, control characters replaced."""
        for text, routes in pieces:
            style = self.style(routes)
            yield f"{style}{clean(text)}{RESET}" if style and text else clean(text)

    def legend(self, shares: Floats, *, colour: bool = True) -> str:
        """ "math 76 %  general 10 %", the largest first, each name in its colour; "" without any."""
        return "  ".join(self.legend_parts(shares, colour=colour))

    def legend_parts(self, shares: Floats, *, colour: bool) -> list[str]:
        """The same, expert by expert."""
        parts = []
        for e in np.argsort(-shares, kind="stable"):
            if shares[e] < LEAST_SHARE:
                break
            name = f"{self._sgr[e]}{self.names[e]}{RESET}" if colour else self.names[e]
            parts.append(f"{name} {100 * shares[e]:.0f} %")
        return parts

    def table(
        self, shares: dict[str, Floats], settings: dict[str, float | str], *, colour: bool
    ) -> list[str]:
        """A line for each expert: number, name, its share in each of `shares`, what it is set to."""
        width = max(len(n) for n in self.names)
        titles = "".join(f"  {title:>8}" for title in shares)
        lines = [f"{'':4}{'':{width}}{titles}"] if shares else []
        for e, name in enumerate(self.names):
            shown = f"{self._sgr[e]}{name}{RESET}" if colour else name
            numbers = "".join(f"  {100 * s[e]:6.1f} %" for s in shares.values())
            value = settings.get(self._keys[e])
            said = (
                "" if value is None else f"  {value if isinstance(value, str) else f'{value:.3g}'}"
            )
            lines.append(f"{e:3} {shown}{'':{width - len(name)}}{numbers}{said}")
        return lines


class TurnShares:
    """Adds up what the router chose in a turn, token by token, thoughts that are not shown among them.

    Attributes:
        prompt: shares [n_experts] in what was evaluated of the prompt; None before that.
        n_prompt: how many tokens that was.
        n_answer: positions that a token of the answer was drawn from: the prompt's last, then each token of
            the answer that was evaluated.
    """

    def __init__(self, n_experts: int) -> None:
        self._sum = np.zeros(n_experts)
        self.clear()

    def clear(self) -> None:
        """Begins a turn."""
        self._sum[:] = 0
        self.n_prompt = self.n_answer = 0
        self.prompt: Floats | None = None

    def add(self, routes: Routes) -> None:
        """Takes in an evaluation: of the prompt, then of each token."""
        if self.prompt is None:
            self.prompt = routes.shares()
            self.n_prompt = routes.n_tokens
        self._sum += routes.by_token()[-1]
        self.n_answer += 1

    @property
    def answer(self) -> Floats:
        """Shares [n_experts] in what wrote the answer; all 0 without one."""
        return self._sum / max(1, self.n_answer)
