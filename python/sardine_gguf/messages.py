"""Messages in the one shape that a template takes: text, or blocks where it reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

_REASONING_KEYS = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class TemplateStyle:
    """What a template can read, found in its source.

    Attributes:
        blocks: it goes through lists of content blocks.
        thinking: blocks of the type "thinking" are among them.
        reasoning_content: it reads thoughts from this key of a message.
        joint: what stands between neighbouring text blocks.
    """

    blocks: bool
    thinking: bool
    reasoning_content: bool
    joint: str

    @staticmethod
    def of(source: str, *, is_mistral: bool) -> TemplateStyle:
        """The style of a template. Mistral's own tokenizer joins text blocks with an empty line."""
        return TemplateStyle(
            blocks=re.search(r"""\[['"]type['"]\]|\.type\b|\.get\(['"]type['"]""", source)
            is not None,
            thinking=re.search(r"""['"]thinking['"]""", source) is not None,
            reasoning_content="reasoning_content" in source,
            joint="\n\n" if is_mistral else "",
        )


def normalise(messages: Sequence[Message], style: TemplateStyle) -> list[dict[str, Any]]:
    """Copies of the messages in the template's style. Other keys stay as they are.

    Raises:
        TypeError: one is no mapping.
    """
    out = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"messages[{i}] is of type {type(message).__name__}, expected a mapping"
            )
        copy = _with_thoughts(dict(message), style)
        content = copy.get("content")
        if isinstance(content, list | tuple):
            copy["content"] = _joined(content, style)
        out.append(copy)
    return out


def _with_thoughts(message: dict[str, Any], style: TemplateStyle) -> dict[str, Any]:
    """Moves thoughts to where the template reads them; where it does not, they are left out."""
    given = [message.pop(k) for k in _REASONING_KEYS if k in message]
    thoughts = next((t for t in given if t), None)
    if not isinstance(thoughts, str):
        return message
    if style.reasoning_content:
        message["reasoning_content"] = thoughts
    elif style.thinking and style.blocks:
        content = message.get("content") or []
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        message["content"] = [{"type": "thinking", "thinking": thoughts}, *blocks]
    return message


def _is_text(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "text"


def _joined(content: Sequence[Any], style: TemplateStyle) -> Any:
    """Neighbouring text blocks as one; text alone as a string."""
    out: list[Any] = []
    for block in content:
        if not _is_text(block):
            out.append(block)
            continue
        text = str(block.get("text", ""))
        if out and _is_text(out[-1]):
            joint = style.joint if text and out[-1]["text"] else ""
            out[-1] = {**out[-1], "text": out[-1]["text"] + joint + text}
        else:
            out.append({**block, "text": text})
    if all(_is_text(b) for b in out):
        return "".join(b["text"] for b in out)
    return out
