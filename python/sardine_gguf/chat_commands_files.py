"""Commands that keep a conversation: /save, /load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sardine_gguf.chat_commands import COMMANDS, PATHS
from sardine_gguf.chat_session import load_conversation, save_conversation
from sardine_gguf.output_file import check_output
from sardine_gguf.terminal import clean_line
from sardine_gguf.units import count_text

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat


@COMMANDS.add("/save", usage="FILE", summary="save the conversation as JSON", complete=PATHS)
def save(chat: Chat, text: str) -> None:
    """Writes the conversation; a file of that name is replaced only if it is a conversation."""
    if not text:
        raise ValueError("/save needs the name of a file")
    path = Path(text).expanduser()
    native = chat.model.model
    check_output(path, [Path(p) for p in (native.path, native.adapter) if p])
    if path.exists():
        load_conversation(path)  # refuses to replace anything else
    save_conversation(path, chat.conversation())
    chat.say(f"(saved to {clean_line(str(path))}: {count_text(len(chat.messages), 'message')})")


@COMMANDS.add("/load", usage="FILE", summary="go on with a saved conversation", complete=PATHS)
def load(chat: Chat, text: str) -> None:
    """Takes messages and settings from a file."""
    if not text:
        raise ValueError("/load needs the name of a file that /save wrote")
    chat.resume(load_conversation(Path(text).expanduser()))
