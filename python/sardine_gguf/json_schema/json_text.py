"""JSON's own texts as grammar expressions: strings, numbers, any value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sardine_gguf.json_schema.expressions import (
    DIGIT,
    Class,
    Expr,
    Literal,
    Ref,
    alt,
    chars,
    optional,
    rep,
    seq,
)

Ranges = tuple[tuple[int, int], ...]

# What a JSON string may hold as it is; surrogates are no characters, and DEL is left to escapes.
PLAIN: Ranges = (
    (0x20, 0x21),
    (0x23, 0x5B),
    (0x5D, 0x7E),
    (0x80, 0xD7FF),
    (0xE000, 0x10FFFF),
)
_COMMON_ESCAPES = '"\\\b\f\n\r\t'
_FEW = 128

WS, CHAR, STRING, NUMBER, VALUE, OBJECT, ARRAY = map(
    Ref, ("ws", "char", "string", "number", "value", "object", "array")
)
_PLAIN, _HEX = Ref("plain"), Ref("hex")


def encoded(value: Any) -> str:
    """A value as JSON; lone surrogates, which UTF-8 lacks, are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or _is_unicode(text) else json.dumps(value)


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


def intersection(a: Ranges, b: Ranges) -> Ranges:
    """The code points in both, of ascending ranges."""
    return tuple(
        (max(x[0], y[0]), min(x[1], y[1]))
        for x in a
        for y in b
        if max(x[0], y[0]) <= min(x[1], y[1])
    )


def one_of(ranges: Ranges) -> Expr:
    """One character of these, as it is written in a JSON string; never, if there is none.

    Of a large set the rare control characters are left out.
    """
    plain = intersection(ranges, PLAIN)
    few = sum(b - a + 1 for a, b in ranges) <= _FEW
    special = [chr(c) for c in (*range(0x20), 0x22, 0x5C, 0x7F)] if few else _COMMON_ESCAPES
    escapes = [
        Literal("\\u007F" if c == "\x7f" else json.dumps(c)[1:-1])
        for c in special
        if any(a <= ord(c) <= b for a, b in ranges)
    ]
    return alt(*([Class(plain)] if plain else []), *escapes)


def key_but(names: Iterable[str], new_rule: Any) -> Expr:
    """The rest of a JSON string behind its opening quote, closing quote included, that is none of the names.

    Without escapes, so that no name can be spelled in another way.
    """
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for c in name:
            node = node.setdefault(c, {})
        node[""] = {}

    def rest(node: dict[str, Any]) -> Expr:
        taken = sorted(ord(c) for c in node if c)
        free = list(PLAIN)
        for c in taken:
            free = [
                r
                for a, b in free
                for r in (((a, c - 1), (c + 1, b)) if a <= c <= b else ((a, b),))
                if r[0] <= r[1]
            ]
        end = [] if "" in node else [Literal('"')]
        other = seq(Class(tuple(free)), rep(_PLAIN), '"')
        return alt(*end, other, *(seq(c, deeper[c]) for c in node if c and c in deeper))

    # Deepest first, without recursion: names may be long.
    order, todo = [], [tree]
    while todo:
        node = todo.pop()
        order.append(node)
        todo += [child for c, child in node.items() if c]
    made: dict[int, Expr] = {}
    deeper: dict[str, Expr] = {}
    for node in reversed(order):
        deeper = {
            c: made[id(child)]
            for c, child in node.items()
            if c and intersection(((ord(c), ord(c)),), PLAIN)
        }
        made[id(node)] = new_rule(rest(node))
    return made[id(tree)]


def json_rules() -> dict[str, Expr]:
    """Rules of the names above. Numbers stay finite in float64, and white space ends."""
    escape = alt(
        chars('"\\/bfnrt'),
        seq("u", alt(seq(chars("0123456789abcefABCEF"), rep(_HEX, 3, 3)),
                     seq(chars("dD"), chars("01234567"), rep(_HEX, 2, 2)),
                     seq(chars("dD"), chars("89abAB"), rep(_HEX, 2, 2),
                         "\\u", chars("dD"), chars("cdefCDEF"), rep(_HEX, 2, 2)))),
    )  # fmt: skip
    member = seq(STRING, ":", WS, VALUE)
    more = (",", WS)
    return {
        "ws": alt("", " ", seq("\n", rep(chars(" \t"), 0, 20))),
        "hex": Class(((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))),
        "plain": Class(PLAIN),
        "char": alt(Class(PLAIN), seq("\\", escape)),
        "string": seq('"', rep(CHAR), '"'),
        "number": seq(
            optional(Literal("-")),
            alt("0", seq(Class(((0x31, 0x39),)), rep(DIGIT, 0, 15))),
            optional(seq(".", rep(DIGIT, 1, 16))),
            optional(seq(chars("eE"), optional(chars("+-")), rep(DIGIT, 1, 2))),
        ),
        "value": alt(OBJECT, ARRAY, STRING, NUMBER, "true", "false", "null"),
        "object": seq("{", WS, optional(seq(member, rep(seq(*more, member)), WS)), "}"),
        "array": seq("[", WS, optional(seq(VALUE, rep(seq(*more, VALUE)), WS)), "]"),
    }
