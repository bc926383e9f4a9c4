"""Regular expressions of JSON Schema's `pattern` as grammar expressions of a string's JSON text.

Read by Python's own parser. Of what Python and ECMA 262 take differently, either the common part is written,
as for \\d (ASCII alone), or it is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from sardine_gguf.json_schema.expressions import (
    EMPTY,
    MAX_REPETITIONS,
    NEVER,
    Alt,
    Expr,
    Rep,
    Seq,
    alt,
    rep,
    seq,
)
from sardine_gguf.json_schema.json_text import Ranges, intersection, one_of

_ALL: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
_ASCII: Ranges = ((0, 0x7F),)
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = ((9, 13), (0x20, 0x20))
# Python takes these ASCII separators for space, ECMA does not.
_MAYBE_SPACE: Ranges = ((9, 13), (0x1C, 0x20))
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))


class Unsupported(ValueError):
    """What of the pattern cannot be written."""


def _complement(ranges: Ranges) -> Ranges:
    out, begin = [], 0
    for a, b in sorted(ranges):
        if a > begin:
            out.append((begin, a - 1))
        begin = max(begin, b + 1)
    if begin <= 0x10FFFF:
        out.append((begin, 0x10FFFF))
    return intersection(tuple(out), _ALL)


def _union(parts: Sequence[tuple[int, int]]) -> Ranges:
    out: list[tuple[int, int]] = []
    for a, b in sorted(parts):
        if out and a <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return intersection(tuple(out), _ALL)


# What surely is of a category, and what may be.
_CATEGORIES: dict[Any, tuple[Ranges, Ranges]] = {
    op.CATEGORY_DIGIT: (_DIGITS, _union([*_DIGITS, (0x80, 0x10FFFF)])),
    op.CATEGORY_WORD: (_WORD, _union([*_WORD, (0x80, 0x10FFFF)])),
    op.CATEGORY_SPACE: (_SPACE, _union([*_MAYBE_SPACE, (0x80, 0x10FFFF)])),
}
for _positive, _negative in (
    (op.CATEGORY_DIGIT, op.CATEGORY_NOT_DIGIT),
    (op.CATEGORY_WORD, op.CATEGORY_NOT_WORD),
    (op.CATEGORY_SPACE, op.CATEGORY_NOT_SPACE),
):
    _sure, _maybe = _CATEGORIES[_positive]
    _CATEGORIES[_negative] = (_complement(_maybe), _complement(_sure))

_ESCAPES = set("dDwWsSnrtfvxub")


def _check_dialect(pattern: str) -> None:
    """Refuses what means one thing to Python and another, or nothing, to ECMA 262."""
    i, in_class = 0, False
    while i < len(pattern):
        c, after = pattern[i], pattern[i + 1 : i + 2]
        if c == "\\":
            octal = after == "0" and not pattern[i + 2 : i + 3].isdigit()
            if after.isascii() and after.isalnum() and after not in _ESCAPES and not octal:
                raise Unsupported(f"\\{after} is not the same in all dialects")
            i += 1
        elif in_class:
            in_class = c != "]"
        elif c == "[":
            if re.match(r"\[\^?\]", pattern[i:]):
                raise Unsupported("a class that begins with ']' is not the same in all dialects")
            in_class = True
        elif c == "{" and re.match(r"\{,\d*\}", pattern[i:]):
            raise Unsupported("{,n} is not the same in all dialects: write {0,n}")
        elif c == "(" and after == "?" and not pattern.startswith("(?:", i):
            raise Unsupported(f"a group that begins with {pattern[i : i + 3]}")
        i += 1


def pattern_expression(pattern: str) -> tuple[Expr, int, int | None]:
    """The texts in which the pattern is found, and their fewest and most characters (None: no end).

    As JSON Schema says, the pattern may be anywhere in the text unless ^ and $ hold it.

    Raises:
        Unsupported: it does not parse, or has look-around, back references or the like.
    """
    _check_dialect(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets within sets, which are taken as they are
            tree = parser.parse(pattern)
    except (re.error, OverflowError) as e:
        raise Unsupported(f"it is no regular expression: {e}") from None
    parts: list[Expr] = []
    widths: list[tuple[int, int | None]] = []
    for items in _branches(list(tree)):
        begins = bool(items) and items[0] == (op.AT, op.AT_BEGINNING)
        while items and items[0] == (op.AT, op.AT_BEGINNING):
            items = items[1:]
        ends = bool(items) and items[-1] == (op.AT, op.AT_END)
        while items and items[-1] == (op.AT, op.AT_END):
            items = items[:-1]
        body, least, most = _sequence(items)
        anything = rep(one_of(_ALL))
        parts.append(seq(*([] if begins else [anything]), body, *([] if ends else [anything])))
        widths.append((least, most if begins and ends else None))
    return (
        alt(*parts),
        min(least for least, _ in widths),
        _largest([most for _, most in widths]),
    )


def _branches(items: list[Any]) -> list[list[Any]]:
    """The alternatives of a pattern, whose anchors each are its own."""
    while len(items) == 1 and items[0][0] is op.SUBPATTERN:
        items = list(items[0][1][3])
    start = [i for i in items if i == (op.AT, op.AT_BEGINNING)] if items[:1] else []
    rest = items[len(start) :] if items[: len(start)] == start else items
    if len(rest) == 1 and rest[0][0] is op.BRANCH:
        prefix = items[: len(items) - 1]
        return [b for branch in rest[0][1][1] for b in _branches([*prefix, *branch])]
    return [items]


def _largest(widths: Sequence[int | None]) -> int | None:
    return None if None in widths else max((w for w in widths if w is not None), default=0)


Part = tuple[Expr, int, int | None]


def _sequence(items: Sequence[Any]) -> Part:
    parts = [_item(kind, value) for kind, value in items]
    most = [m for _, _, m in parts]
    return (
        seq(*(e for e, _, _ in parts)),
        sum(least for _, least, _ in parts),
        None if None in most else sum(m for m in most if m is not None),
    )


def _item(kind: Any, value: Any) -> Part:
    if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
        return one_of(_characters(kind, value)), 1, 1
    if kind is op.SUBPATTERN:
        return _sequence(value[3])
    if kind is op.BRANCH:
        parts = [_sequence(branch) for branch in value[1]]
        return (
            alt(*(e for e, _, _ in parts)),
            min(least for _, least, _ in parts),
            _largest([m for _, _, m in parts]),
        )
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
        least, limit, inner = value
        return _repetition(least, None if limit is op.MAXREPEAT else int(limit), _sequence(inner))
    if kind is op.AT:
        names = {op.AT_BEGINNING: "^", op.AT_END: "$", op.AT_BOUNDARY: r"\b"}
        raise Unsupported(f"{names.get(value, 'an anchor')} inside of the pattern")
    raise Unsupported(str(kind).lower().replace("_", " "))


def _repetition(least: int, most: int | None, inner: Part) -> Part:
    if max(least, most or 0) > MAX_REPETITIONS:
        raise Unsupported(f"more repetitions than libllama's {MAX_REPETITIONS}")
    expr, shortest, longest = inner
    width = None if (most is None and longest != 0) or longest is None else longest * (most or 0)
    if most == 0:
        width = 0
    total = least * shortest
    if _nullable(expr):
        expr, least = _nonempty(expr), 0
    return rep(expr, least, most), total, width


def _nullable(expr: Expr) -> bool:
    if isinstance(expr, Seq):
        return all(_nullable(i) for i in expr.items)
    if isinstance(expr, Alt):
        return any(_nullable(i) for i in expr.items)
    return expr == EMPTY or (isinstance(expr, Rep) and expr.least == 0)


def _nonempty(expr: Expr) -> Expr:
    """The expression without its empty text: libllama repeats nothing that may be empty."""
    if not _nullable(expr):
        return expr
    if isinstance(expr, Alt):
        return alt(*(e for e in map(_nonempty, expr.items) if e != NEVER))
    if isinstance(expr, Rep):  # its item has no empty text
        return rep(expr.item, 1, expr.most)
    if isinstance(expr, Seq):
        return alt(
            *(
                e
                for i, item in enumerate(expr.items)
                if (e := seq(_nonempty(item), *expr.items[i + 1 :])) != NEVER
            )
        )
    return NEVER


def _characters(kind: Any, value: Any) -> Ranges:
    """The characters that every dialect takes for the item's."""
    if kind is op.LITERAL:
        return _union([(value, value)])
    if kind is op.NOT_LITERAL:
        return _complement(((value, value),))
    if kind is op.ANY:
        return _complement(_LINE_ENDS)
    negated = bool(value) and value[0][0] is op.NEGATE
    sure: list[tuple[int, int]] = []
    maybe: list[tuple[int, int]] = []
    for what, item in value[1:] if negated else value:
        if what is op.CATEGORY:
            sure += _CATEGORIES[item][0]
            maybe += _CATEGORIES[item][1]
        elif what in (op.LITERAL, op.RANGE):
            ends = (item, item) if what is op.LITERAL else (item[0], item[1])
            sure.append(ends)
            maybe.append(ends)
        else:
            raise Unsupported(str(what).lower())
    return _complement(_union(maybe)) if negated else _union(sure)
