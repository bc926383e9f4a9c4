"""A reasoning model's default system message, which asks it to think first, added to another one.

Templates put a system message of the user in the place of their own, and the request with it; Mistral's model
cards ask to add theirs instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Block = dict[str, str]


def default_think_prompt(rendered: str) -> list[Block] | None:
    """The system message of a chat rendered without one, in blocks; None if it asks for no thoughts."""
    found = re.search(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", rendered, re.DOTALL)
    parts = re.split(r"\[THINK\](.*?)\[/THINK\]", found.group(1), flags=re.DOTALL) if found else []
    if len(parts) < 3:
        return None
    blocks = []
    for i, part in enumerate(parts):
        kind = "thinking" if i % 2 else "text"
        if part or kind == "thinking":
            blocks.append({"type": kind, kind: part})
    return blocks


def with_think_prompt(messages: Sequence[Message], prompt: Sequence[Block]) -> Sequence[Message]:
    """The messages with the prompt at the end of a first one that is a system message.

    One that is empty, which asks for no system message, or has thoughts or this prompt in it, stays as it is.
    """
    first = messages[0] if messages else None
    if not isinstance(first, Mapping) or first.get("role") != "system":
        return messages
    content = first.get("content")
    own = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(own, list | tuple) or not all(_is_text(b) for b in own):
        return messages
    text = "".join(str(b["text"]) for b in own)
    spelled = "".join(
        b["text"] if b["type"] == "text" else f"[THINK]{b['thinking']}[/THINK]" for b in prompt
    )
    if not text or spelled in text:
        return messages
    return [{**first, "content": [*own, *prompt]}, *messages[1:]]


def _is_text(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "text" and "text" in block
