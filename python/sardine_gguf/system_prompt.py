"""System messages beside a template's own instructions to think."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sardine_gguf.chat import ChatTemplate

_BEGIN, _END = "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"
_THINK, _END_THINK = "[THINK]", "[/THINK]"


def thinking_instructions(template: ChatTemplate) -> str | None:
    """The system prompt that a template puts where there is none, if it asks for thoughts."""
    try:
        text = template.render([{"role": "user", "content": "x"}])
    except ValueError:
        return None
    _, found, rest = text.partition(_BEGIN)
    own, ended, _ = rest.partition(_END)
    return own if found and ended and _THINK in own and _END_THINK in own else None


def with_instructions(system: str, own: str) -> list[dict[str, Any]]:
    """A system message that says `system` and then `own`, whose think tokens stay tokens.

    A template that is given any system message leaves its own out, and a reasoning model that is not told
    how to think stops thinking.
    """
    before, _, rest = own.partition(_THINK)
    thoughts, _, after = rest.partition(_END_THINK)
    return [
        {"type": "text", "text": f"{system}\n\n{before}"},
        {"type": "thinking", "thinking": thoughts},
        *([{"type": "text", "text": after}] if after else []),
    ]


def prepared(messages: Sequence[dict[str, Any]], own: str | None) -> list[dict[str, Any]]:
    """The messages as the template gets them: its own instructions follow a system message of text."""
    out = list(messages)
    if own and out and out[0]["role"] == "system" and isinstance(out[0]["content"], str):
        out[0] = {**out[0], "content": with_instructions(out[0]["content"], own)}
    return out
