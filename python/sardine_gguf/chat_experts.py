"""/experts: which experts there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sardine_gguf.chat_commands import COMMANDS

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat


@COMMANDS.add("/experts", summary="names of the experts")
def experts(chat: Chat, _: str) -> None:
    """Lists the experts with their numbers."""
    names = chat.context.expert_names
    lines = [f"{i:3}  {name}" for i, name in enumerate(names)]
    mode = chat.context.delta_mode
    head = f"{len(names)} experts, mode {mode}" if names else "no experts: a plain base model"
    chat.say("\n".join([head, *lines]))
