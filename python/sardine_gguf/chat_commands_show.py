"""Commands that change how the chat answers and looks: /set, /show, /stats, /think."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sardine_gguf.chat_commands import COMMANDS
from sardine_gguf.chat_settings import LOOKS, SETTINGS, parsed, setting
from sardine_gguf.chat_stats import stats_table
from sardine_gguf.model_facts import facts
from sardine_gguf.units import count_text

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat

_PARTS = ("settings", "model", "messages", "system", "template")


def _value(chat: Chat, name: str) -> tuple[str, bool]:
    """A setting's value in words, and whether it was changed."""
    if name in LOOKS:
        return ("on" if getattr(chat.looks, name) else "off"), False
    if name in chat.options:
        given = chat.options[name]
        return ("no limit" if given is None else str(given)), True
    return str(getattr(chat.context.sampling, name, "no limit")), False


def _settings(chat: Chat) -> str:
    lines = []
    for s in SETTINGS:
        value, changed = _value(chat, s.name)
        lines.append(f"{'*' if changed else ' '} {s.name:18} {value:10} {s.what}")
    return "\n".join([*lines, "* set here; /set NAME default takes the model's own"])


@COMMANDS.add(
    "/set",
    usage="[NAME VALUE | NAME default]",
    summary="change a setting: temp, top_k, seed, max_tokens, markdown, ...",
    complete=lambda _: [s.name for s in SETTINGS],
)
def change(chat: Chat, text: str) -> None:
    """Changes one setting; without a name lists them."""
    if not text:
        chat.say(_settings(chat))
        return
    name, _, value = text.partition(" ")
    name, _, joined = name.partition("=")
    value = (joined or value).strip()
    found = setting(name)
    if not value:
        shown, _ = _value(chat, found.name)
        chat.say(f"{found.name} is {shown}: {found.what}")
        return
    if value == "default":
        if found.name in LOOKS:
            raise ValueError(f"{found.name} is on or off")
        chat.options.pop(found.name, None)
    elif found.name in LOOKS:
        on = parsed(found, value)
        if found.name == "markdown" and on and chat.piece_style:
            raise ValueError(
                "answers are coloured by expert, not rendered: /experts colours turns that off"
            )
        setattr(chat.looks, found.name, on)
    else:
        chat.options[found.name] = parsed(found, value)
    shown, _ = _value(chat, found.name)
    chat.say(f"({found.name} is {shown})")


@COMMANDS.add(
    "/show",
    usage="[settings | model | messages | system | template]",
    summary="show settings, the model, the messages, ...",
    complete=lambda _: _PARTS,
)
def show(chat: Chat, text: str) -> None:
    """Shows a part of what the chat knows."""
    part = text or "settings"
    if part not in _PARTS:
        raise ValueError(f"/show knows {', '.join(_PARTS)}, not {part}")
    if part == "settings":
        chat.say(_settings(chat))
    elif part == "model":
        chat.say(facts(chat.context))
    elif part == "system":
        chat.say(chat.system or "(no system message)", as_it_is=True)
    elif part == "template":
        chat.say(chat.context.chat_template.source, as_it_is=True)
    else:
        lines = [f"{m['role']}: {m['content']}" for m in chat.messages]
        chat.say("\n".join(lines) or "(no messages)", as_it_is=True)


@COMMANDS.add(
    "/stats",
    usage="[on | off]",
    summary="counts, rates and memory of the last answer; on, off: the line after each",
    complete=lambda _: ("on", "off"),
)
def stats(chat: Chat, text: str) -> None:
    """Shows them, or turns the line on or off."""
    if text:
        chat.looks.timings = parsed(setting("timings"), text)
        chat.say(f"(the line after each answer is {'on' if chat.looks.timings else 'off'})")
    else:
        chat.say(stats_table(chat.last, chat.context, chat.stats_words()))


@COMMANDS.add(
    "/think",
    usage="[show | hide | on | off | N]",
    summary="show or hide thoughts; allow them, forbid them, or at most N tokens",
    complete=lambda _: ("show", "hide", "on", "off"),
)
def think(chat: Chat, text: str) -> None:
    """Shows or changes what is done about thoughts."""
    if text in ("show", "hide"):
        chat.looks.thinking = text == "show"
    elif text:
        budget = {"on": "-1", "off": "0"}.get(text, text)
        chat.options["reasoning_budget"] = parsed(setting("reasoning_budget"), budget)
    limit = chat.options.get("reasoning_budget")
    if limit == 0:
        chat.say("(no thoughts)")
        return
    tokens = "no limit" if limit in (None, -1) else f"at most {count_text(int(limit), 'token')}"
    chat.say(f"(thoughts are {'shown' if chat.looks.thinking else 'hidden'}, {tokens})")
