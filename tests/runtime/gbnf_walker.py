"""A plain reader of GBNF that writes random texts of a grammar, and says whether it has a text.

Independent of the package: it reads the grammar's text and nothing else.
"""

from __future__ import annotations

import random
import re
from functools import cached_property
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:(?P<literal>"(?:[^"\\]|\\.)*")|(?P<class>\[\^?(?:[^\]\\]|\\.)+\])|(?P<name>[a-zA-Z0-9-]+)"""
    r"""|(?P<repeat>[*+?]|\{\d+(?:,\d*)?\})|(?P<other>[()|]))"""
)
_CHAR = re.compile(r"\\x(..)|\\u(....)|\\U(........)|\\(.)|(.)", re.DOTALL)


def _chars(text: str) -> list[str]:
    out = []
    for x, u, big, escaped, plain in _CHAR.findall(text):
        code = x or u or big
        out.append(
            chr(int(code, 16))
            if code
            else {"n": "\n", "r": "\r", "t": "\t"}.get(escaped, escaped or plain)
        )
    return out


class Grammar:
    """Nodes: ("text", str), ("class", ranges), ("ref", name), ("seq"/"alt", nodes), ("rep", node, m, n)."""

    def __init__(self, text: str) -> None:
        self.rules = {}
        for line in text.split("\n"):
            name, body = line.split(" ::= ", 1)
            self._tokens = [(m.lastgroup, m.group(m.lastgroup or 0)) for m in _TOKEN.finditer(body)]
            assert "".join(t for _, t in self._tokens).replace(" ", "") == re.sub(
                r"\s", "", body
            ), line
            self.rules[name] = self._alternatives()
            assert not self._tokens

    def _alternatives(self) -> Any:
        out = [self._sequence()]
        while self._tokens and self._tokens[0][1] == "|":
            self._tokens.pop(0)
            out.append(self._sequence())
        return ("alt", out)

    def _sequence(self) -> Any:
        out: list[Any] = []
        while self._tokens and self._tokens[0][1] not in ("|", ")"):
            kind, text = self._tokens.pop(0)
            if kind == "literal":
                out.append(("text", "".join(_chars(text[1:-1]))))
            elif kind == "class":
                out.append(("class", self._ranges(text[1:-1])))
            elif kind == "name":
                out.append(("ref", text))
            elif kind == "repeat":
                signs = {"*": (0, None), "+": (1, None), "?": (0, 1)}
                m, n = signs.get(text, (0, 0))
                if text[0] == "{":
                    low, comma, high = text[1:-1].partition(",")
                    m, n = int(low), int(high) if high else (None if comma else int(low))
                assert max(m, n or 0) <= 2000
                out.append(("rep", out.pop(), m, n))
            else:
                assert text == "("
                out.append(self._alternatives())
                assert self._tokens.pop(0)[1] == ")"
        return ("seq", out)

    @staticmethod
    def _ranges(text: str) -> list[tuple[int, int]]:
        out, i = [], 0
        parts = _CHAR.findall(text)
        chars = _chars(text)
        while i < len(chars):
            dash = i + 2 < len(chars) and parts[i + 1][4] == "-"
            out.append((ord(chars[i]), ord(chars[i + 2 if dash else i])))
            i += 3 if dash else 1
        return out

    @cached_property
    def depths(self) -> dict[str, float]:
        """Rules within each other that the shortest text of a rule needs."""
        found = dict.fromkeys(self.rules, float("inf"))
        changed = True
        while changed:
            changed = False
            for name, node in self.rules.items():
                depth = 1 + self._depth(node, found)
                if depth < found[name]:
                    found[name], changed = depth, True
        return found

    def _depth(self, node: Any, found: dict[str, float]) -> float:
        kind = node[0]
        if kind == "ref":
            return found[node[1]]
        if kind == "seq":
            return max((self._depth(n, found) for n in node[1]), default=0)
        if kind == "alt":
            return min(self._depth(n, found) for n in node[1])
        return self._depth(node[1], found) if kind == "rep" and node[2] else 0

    def write(self, rng: random.Random, limit: int = 300) -> str:
        """A random text; near `limit` pieces it takes the shortest way out."""
        out: list[str] = []
        left = limit

        def walk(node: Any) -> None:
            nonlocal left
            kind = node[0]
            left -= 1
            if kind == "text":
                out.append(node[1])
            elif kind == "class":
                low, high = rng.choice(node[1])
                high = high if rng.random() < 0.2 else min(high, low + 90)
                out.append(chr(rng.randint(low, high)))
            elif kind == "ref":
                walk(self.rules[node[1]])
            elif kind == "seq":
                for n in node[1]:
                    walk(n)
            elif kind == "alt":
                choices = node[1]
                if left < 0:
                    depths = [self._depth(n, self.depths) for n in choices]
                    choices = [n for n, d in zip(choices, depths, strict=True) if d == min(depths)]
                walk(rng.choice(choices))
            else:
                _, item, m, n = node
                most = n if n is not None else m + 6
                likely = (
                    m if left < 0 else rng.choice([m, most, rng.randint(m, most), min(most, m + 1)])
                )
                for _ in range(likely):
                    walk(item)

        walk(("ref", "root"))
        return "".join(out)

    def accepts(self, text: str) -> bool:
        """Whether the text is one of the grammar's."""
        seen: dict[Any, frozenset[int]] = {}

        def ends(node: Any, at: int) -> frozenset[int]:
            key = (id(node), at)
            if key not in seen:
                seen[key] = frozenset()  # no left recursion
                seen[key] = frozenset(step(node, at))
            return seen[key]

        def step(node: Any, at: int) -> set[int]:
            kind = node[0]
            if kind == "text":
                return {at + len(node[1])} if text.startswith(node[1], at) else set()
            if kind == "class":
                fits = at < len(text) and any(a <= ord(text[at]) <= b for a, b in node[1])
                return {at + 1} if fits else set()
            if kind == "ref":
                return set(ends(self.rules[node[1]], at))
            if kind == "alt":
                return {e for n in node[1] for e in ends(n, at)}
            if kind == "seq":
                now = {at}
                for n in node[1]:
                    now = {e for a in now for e in ends(n, a)}
                return now
            _, item, m, n = node
            now, out, count = {at}, ({at} if m == 0 else set()), 0
            while now and (n is None or count < n):
                now = {e for a in now for e in ends(item, a)}
                count += 1
                now = now - out if count > m else now
                out |= now if count >= m else set()
            return out

        return len(text) in ends(self.rules["root"], 0)
