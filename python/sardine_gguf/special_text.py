"""Keeps the names of special tokens in user text apart from those that a template writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def _strings(value: Any) -> Iterator[str]:
    """All strings in JSON-like data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from _strings(k)
            yield from _strings(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _strings(v)


class SpecialText:
    """The names of a vocabulary's special tokens.

    User text may neither begin nor end one, alone, together with other user text, or with the template's:
    the characters that begin and end names ('[', ']', '<', '>') are disguised while the template runs. A name
    that begins or ends with a letter is disguised where it stands whole.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._ids = dict(special)
        names = sorted(special, key=len, reverse=True)
        self._spelled = {i: t for t, i in special.items()}
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        begun = {re.escape(n[:i]) for n in names for i in range(1, len(n))}
        ended = {re.escape(n[i:]) for n in names for i in range(1, len(n))}
        self._begun = re.compile(f"(?:{'|'.join(sorted(begun)) or '(?!)'})\\Z")
        self._ended = re.compile("|".join(sorted(ended)) or r"(?!)")
        edges = {c for n in names for c in (n[0], n[-1])}
        self._edges = sorted(c for c in edges if not c.isalnum() and not c.isspace())
        wordy = [n for n in names if n[0] not in self._edges]
        self._wordy = re.compile("|".join(map(re.escape, wordy)) or r"(?!)")
        self._characters = [*self._edges, *sorted({n[0] for n in wordy})]

    def disguise(self, messages: Any, template: str) -> Disguise:
        """A disguise that no message and not the template contains. Raises ValueError if there is none."""
        used = set().union(*map(set, _strings(messages)), template, *self._ids)
        free = (c for c in map(chr, chain(*_PRIVATE_USE)) if c not in used)
        marks = dict(zip(self._characters, free, strict=False))
        if len(marks) < len(self._characters):
            raise ValueError("the messages use every private-use character of Unicode")
        return Disguise(marks, self._edges, self._wordy)

    def marks(self, messages: Any, template: str, also: Iterable[str]) -> dict[str, str]:
        """A character for each name that the template's source or `also` contains, which no message has."""
        texts = [template, *also]
        names = [n for n in self._ids if any(n in t for t in texts)]
        used = set().union(*map(set, _strings(messages)), template, *self._ids)
        free = (c for c in map(chr, chain(*_PRIVATE_USE)) if c not in used)
        marks = dict(zip(names, free, strict=False))
        if len(marks) < len(names):
            raise ValueError("the messages use every private-use character of Unicode")
        return marks

    def split_marks(self, text: str, marks: Mapping[str, str]) -> Iterator[str | int]:
        """Text between marks, and the ids of the names that they stand for."""
        ids = {mark: self._ids[name] for name, mark in marks.items()}
        found = re.split(f"([{re.escape(''.join(ids))}])", text) if ids else [text]
        yield from (ids.get(part, part) for part in found if part)

    def joined(self, parts: Iterable[str | int]) -> str:
        """The text, names spelled out."""
        return "".join(p if isinstance(p, str) else self._spelled[p] for p in parts)

    def may_be_in(self, messages: Any) -> bool:
        """Whether a string has a name in it, or ends or begins with a part of one."""
        return any(
            self._names.search(s) or self._begun.search(s) or self._ended.match(s)
            for s in _strings(messages)
        )

    def split(self, text: str) -> Iterator[str | int]:
        """Text between special tokens, and their ids."""
        begin = 0
        for match in self._names.finditer(text):
            if match.start() > begin:
                yield text[begin : match.start()]
            yield self._ids[match.group()]
            begin = match.end()
        if begin < len(text):
            yield text[begin:]


class Disguise:
    """Replaces characters one by one, so that lengths stay, and puts them back."""

    def __init__(self, marks: Mapping[str, str], edges: list[str], wordy: re.Pattern[str]) -> None:
        self._marks, self._wordy = dict(marks), wordy
        self._hide = str.maketrans({c: marks[c] for c in edges})
        self._show = str.maketrans({mark: c for c, mark in marks.items()})

    def hide(self, value: Any) -> Any:
        """A copy of JSON-like data with every string disguised."""
        if isinstance(value, str):
            whole = self._wordy.sub(lambda m: self._marks[m.group()[0]] + m.group()[1:], value)
            return whole.translate(self._hide)
        if isinstance(value, Mapping):
            return {self.hide(k): self.hide(v) for k, v in value.items()}
        return [self.hide(v) for v in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        """The text as it was."""
        return text.translate(self._show)
