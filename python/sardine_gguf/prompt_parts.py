"""A rendered prompt as text and special tokens, where only the template's own names are tokens.

A template's output is text, in which nothing tells a name that the template wrote from one of a user. So the
template runs again on messages in which the characters that make names are disguised. It may see that:
templates search in a text, split, print or encode it. Then its output differs from that of the true messages,
and its constants are marked instead, which leaves the messages as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sardine_gguf.special_text import SpecialText

Parts = list[str | int]
# Renders messages, with marks in the place of the special names of the template's constants.
Render = Callable[[Sequence[Mapping[str, Any]], Mapping[str, str]], str]


def prompt_parts(
    render: Render,
    special: SpecialText,
    messages: Sequence[Mapping[str, Any]],
    source: str,
    tokens: Iterable[str],
) -> Parts:
    """Text that is to be read as text, and ids of special tokens.

    Args:
        messages: as the template takes them.
        source: of the template.
        tokens: names that the template gets as variables.

    Raises:
        ValueError: the template refuses the messages.
    """
    true = render(messages, {})
    disguise = special.disguise(messages, source)
    try:
        hidden = list(special.split(render([disguise.hide(m) for m in messages], {})))
    except ValueError:  # it takes the true messages, so it looks at what is disguised
        hidden = None
    shown: Parts | None = None
    if hidden is not None:
        shown = [disguise.show(p) if isinstance(p, str) else p for p in hidden]
        if special.joined(shown) == true:
            return shown
    marks = special.marks(messages, source, tokens)
    try:
        marked = list(special.split_marks(render(messages, marks), marks))
    except ValueError:
        marked = None
    if marked is not None and special.joined(marked) == true:
        # A name that the template puts together from pieces has no mark.
        whole = set(special.split_marks("".join(marks.values()), marks))
        if shown is None or {p for p in shown if isinstance(p, int)} <= whole:
            return marked
    plain = list(special.split(true))
    if not special.may_be_in(messages) and (shown is None or _ids(plain) == _ids(shown)):
        return plain
    if shown is None:
        raise ValueError(
            "the chat template cannot be followed without reading special tokens from the messages: leave "
            "names of special tokens out of them"
        )
    return shown  # as the template writes it for messages without such characters


def _ids(parts: Parts) -> list[int]:
    return [p for p in parts if isinstance(p, int)]
