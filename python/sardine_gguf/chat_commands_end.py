"""/help and /exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sardine_gguf.chat_commands import COMMANDS, Leave

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat

KEYS = """\
Tab              complete commands, settings, file names
Alt-Enter        new line; also \\ at a line's end, or \"\"\" around several lines
Up, Ctrl-R       earlier messages; search in them
Ctrl-G           write the message in $EDITOR
Ctrl-C           stop an answer; what was said of it is kept
Ctrl-D           leave"""


@COMMANDS.add("/help", "/?", summary="this text")
def help_text(chat: Chat, _: str) -> None:
    """Lists commands and keys."""
    rows = []
    for c in COMMANDS:
        left = " ".join([", ".join(c.names), *([c.usage] if c.usage else [])])
        rows += [f"{left:16} {c.summary}"] if len(left) < 17 else [left, f"{'':16} {c.summary}"]
    chat.say("\n".join([*rows, "", *KEYS.splitlines()]))


@COMMANDS.add("/exit", "/bye", "/quit", summary="leave")
def leave(chat: Chat, _: str) -> None:
    """Ends the chat."""
    raise Leave
