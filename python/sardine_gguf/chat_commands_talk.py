"""Commands that change what was said: /regen, /system, /clear, /read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sardine_gguf.chat_commands import COMMANDS, PATHS
from sardine_gguf.terminal import clean_line
from sardine_gguf.text_files import read_text_file
from sardine_gguf.units import count_text

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat

READ_LIMIT = 8 << 20


@COMMANDS.add("/regen", summary="answer the last message anew")
def regen(chat: Chat, _: str) -> None:
    """Takes the last answer back and asks again; a fixed seed goes up by one."""
    chat.regenerate()


@COMMANDS.add("/system", usage="[TEXT | none]", summary="show or change the system message")
def system(chat: Chat, text: str) -> None:
    """Changes the first message; the next turn evaluates the conversation anew."""
    if text:
        chat.system = None if text == "none" else text
        chat.say("(the system message is changed)" if chat.system else "(no system message)")
    else:
        chat.say(chat.system or "(no system message)", as_it_is=True)


@COMMANDS.add(
    "/read", usage="FILE", summary="put a text file before the next message", complete=PATHS
)
def read(chat: Chat, text: str) -> None:
    """The file's text waits for the next message."""
    if not text:
        raise ValueError("/read needs the name of a text file")
    path = Path(text).expanduser()
    odd = path.exists() and not (path.is_file() or path.is_dir())
    if odd or text == "-":  # a terminal among them, whose keys are the chat's to read
        raise ValueError(f"{path}: this is no regular file: expected a text file")
    found = read_text_file(path, limit=READ_LIMIT)
    if "\0" in found:
        raise ValueError(f"{path}: it has null characters, expected a text file")
    chat.attached.append(found)
    size = count_text(len(found), "character")
    chat.say(f"({size} of {clean_line(path.name)} go before your next message)")


@COMMANDS.add("/clear", summary="forget the conversation, but not the system message")
def clear(chat: Chat, _: str) -> None:
    """Empties the conversation and the context."""
    chat.clear()
    chat.say("(the conversation is forgotten)")
