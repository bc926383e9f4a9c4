"""/experts: shows and changes what the experts do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sardine_gguf.chat_commands import COMMANDS
from sardine_gguf.chat_experts import coloured, tell, view_of
from sardine_gguf.terminal import line_width
from sardine_gguf.wrapping import wrapped

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat


def words(chat: Chat) -> Iterable[str]:
    """What Tab offers."""
    names = chat.context.expert_names
    return [*names, *(f"{n}=" for n in names), *(f"{n}=mute" for n in names), "colours", "reset"]


@COMMANDS.add(
    "/experts",
    usage="[NAME=WEIGHT | NAME=mute | NAME=+BIAS ... | reset | colours]",
    summary="show the experts' shares; force, mute or bias them; colour answers by them",
    complete=words,
)
def experts(chat: Chat, text: str) -> None:
    """Shows the shares of the last turn, or sets the experts of the turns to come."""
    context = chat.context
    if not text:
        _show(chat)
        return
    if text in ("colours", "colors"):
        view = view_of(chat)
        if view is None:
            raise ValueError("nothing is routed here, so there is nothing to colour")
        if chat.looks.markdown and not view.show:
            raise ValueError(
                "answers are rendered as Markdown, not coloured: /set markdown off turns that off"
            )
        view.show = not view.show
        chat.say(f"(answers are {'coloured by expert' if view.show else 'not coloured'})")
        return
    before = context.n_tokens
    context.experts = None if text == "reset" else text
    chat.unset_experts = {}
    said = context.expert_settings(context.experts).text(context.expert_names)
    emptied = "; the conversation is read again" if before and not context.n_tokens else ""
    chat.say(f"({said or _unsteered(chat)}{emptied})")


def _unsteered(chat: Chat) -> str:
    return "no expert acts" if chat.context.delta_mode == "off" else "the router chooses"


def _show(chat: Chat) -> None:
    context = chat.context
    names = context.expert_names
    if not names:
        chat.say("no experts: a plain base model")
        return
    view = view_of(chat)
    settings = context.expert_settings(context.experts).text(names) if context.experts else ""
    per_token = context.model.experts["expert_used_count"]
    chat.say(
        f"{len(names)} experts, {per_token} a token, mode {context.delta_mode}; "
        + (settings or _unsteered(chat))
    )
    from sardine_gguf.expert_view import ExpertColours

    shares = {}
    if view and view.shares.prompt is not None:
        shares = {"prompt": view.shares.prompt, "answer": view.shares.answer}
    table = ExpertColours(names).table(shares, context.experts, colour=coloured(chat))
    width = line_width(chat.err)
    tell(chat, "\n".join(wrapped(line, width) for line in table))
