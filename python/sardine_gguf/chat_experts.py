"""The experts in the chat: --show-routing, and the leading one in the stats."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sardine_gguf.terminal import line_width
from sardine_gguf.wrapping import joined

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat
    from sardine_gguf.chat_turn import Turn
    from sardine_gguf.routes import Routes


def configure(chat: Chat, args: argparse.Namespace) -> None:
    """Watches the routing of a chat's turns.

    Raises:
        ValueError: --show-routing where nothing is routed.
    """
    routed = bool(chat.context.expert_names) and chat.context.delta_mode != "off"
    if args.show_routing and not routed:
        raise ValueError(
            "--show-routing: nothing is routed in a plain base model or in delta mode off"
        )
    if routed:
        RoutingView(chat, show=args.show_routing)


class RoutingView:
    """Follows the routing of a chat's turns, and shows it.

    Args:
        show: colour the answers, and put a legend under each.
    """

    def __init__(self, chat: Chat, *, show: bool) -> None:
        from sardine_gguf.expert_view import ExpertColours, TurnShares

        self._chat = chat
        self.colours = ExpertColours(chat.context.expert_names)
        self.shares = TurnShares(len(chat.context.expert_names))
        self._last: Routes | None = None  # of what was evaluated last in the turn
        chat.before_turn.append(self._begin)
        chat.on_evaluated.append(self._evaluated)
        chat.stats_parts.append(self._stats)
        chat.after_turn.append(self._legend)
        self.show = show

    @property
    def show(self) -> bool:
        """Whether answers are coloured."""
        return self._show

    @show.setter
    def show(self, on: bool) -> None:
        self._show = on
        self._chat.piece_style = self._style if on else None

    def _begin(self) -> None:
        self.shares.clear()
        self._last = None

    def _evaluated(self, _: list[int], routes: Routes) -> None:
        self.shares.add(routes)
        self._last = routes

    def _style(self) -> str:
        return self.colours.style(self._last) if self._last else ""

    def _stats(self, _: Turn) -> str:
        return next(iter(self.colours.legend_parts(self.shares.answer, colour=False)), "")

    def _legend(self, _: Turn) -> str:
        if self._show:
            parts = self.colours.legend_parts(self.shares.answer, colour=coloured(self._chat))
            tell(self._chat, joined(parts, "  ", line_width(self._chat.err)))
        return ""


def view_of(chat: Chat) -> RoutingView | None:
    """What follows this chat's routing, if anything does."""
    watching = (getattr(call, "__self__", None) for call in chat.on_evaluated)
    return next((w for w in watching if isinstance(w, RoutingView)), None)


def coloured(chat: Chat) -> bool:
    """Whether notes may have colours."""
    from sardine_gguf.terminal import wants_colour

    return wants_colour(chat.err, chat.colour_mode)


def tell(chat: Chat, text: str) -> None:
    """A note with colours of its own, whose text is clean already."""
    if text:
        print(text, file=chat.err, flush=True)
