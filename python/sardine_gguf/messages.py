"""Messages in the one shape that a template takes: text, or blocks where it reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sardine_gguf.arguments import text, wrong_type

Message = Mapping[str, Any]

MAX_DEPTH = 32
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


def check_messages(messages: Any) -> None:
    """Whether they are data that a template can be given.

    Raises:
        TypeError: they are no sequence of mappings, or a part is of a type that JSON does not have or of
            another one than its key says; names the part.
        ValueError: a part is nested more than MAX_DEPTH deep.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise wrong_type("messages", messages, "a list of mappings")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise wrong_type(where, message, "a mapping")
        _check_data(where, message)
        for key in ("role", *_REASONING_KEYS):
            if message.get(key) is not None:
                text(f"{where}[{key!r}]", message[key])
        content = message.get("content")
        if isinstance(content, list | tuple):
            for j, block in enumerate(content):
                place = f"{where}['content'][{j}]"
                if not isinstance(block, Mapping):
                    raise wrong_type(place, block, "a mapping")
                if block.get("type") == "text":
                    text(f"{place}['text']", block.get("text"))
        elif not (content is None or isinstance(content, str)):
            raise wrong_type(f"{where}['content']", content, "a str or a list of blocks")


def _check_data(where: str, data: Any) -> None:
    level = [(where, data)]
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, Mapping):
                for key, inner in value.items():
                    deeper.append((f"{place}[{text(f'a key of {place}', key)!r}]", inner))
            elif isinstance(value, list | tuple):
                deeper += [(f"{place}[{i}]", inner) for i, inner in enumerate(value)]
            elif not (value is None or isinstance(value, str | int | float)):
                raise wrong_type(place, value, "what JSON can hold")
        if not deeper:
            return
        level = deeper
    raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep")


def normalise(messages: Sequence[Message], style: TemplateStyle) -> list[dict[str, Any]]:
    """Copies of the messages in the template's style. Other keys stay as they are.

    Raises:
        TypeError, ValueError: as `check_messages`.
    """
    check_messages(messages)
    out = []
    for message in messages:
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
