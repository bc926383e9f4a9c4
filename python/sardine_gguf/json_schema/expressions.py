"""Expressions of a GBNF grammar: made, thinned out to what has texts, and printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

MAX_REPETITIONS = 2000  # libllama's: it refuses more, or takes a larger upper end for no end at all
MAX_TEXT = 1 << 20  # bytes of a grammar, as the native reader takes it
MAX_ELEMENTS = 500_000  # once repetitions are written out


@dataclass(frozen=True)
class Literal:
    """A text."""

    text: str


@dataclass(frozen=True)
class Class:
    """One character of inclusive ranges of code points, ascending."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Ref:
    """A rule by name."""

    name: str


@dataclass(frozen=True)
class Seq:
    """One after the other."""

    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Alt:
    """One of several; of none, no text at all."""

    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Rep:
    """`least` to `most` times; None is no end."""

    item: Expr
    least: int
    most: int | None


Expr = Literal | Class | Ref | Seq | Alt | Rep
EMPTY = Literal("")
NEVER = Alt(())


def chars(text: str) -> Class:
    """One of the characters of a text."""
    return Class(tuple((ord(c), ord(c)) for c in sorted(set(text))))


DIGIT = Class(((0x30, 0x39),))


def seq(*items: Expr | str) -> Expr:
    """The expressions in order, neighbouring literals joined."""
    out: list[Expr] = []
    for given in items:
        item = Literal(given) if isinstance(given, str) else given
        for part in item.items if isinstance(item, Seq) else (item,):
            if part == NEVER:
                return NEVER
            if isinstance(part, Literal) and out and isinstance(out[-1], Literal):
                out[-1] = Literal(out[-1].text + part.text)
            elif part != EMPTY:
                if out and out[-1] == EMPTY:
                    out.pop()
                out.append(part)
    return out[0] if len(out) == 1 else Seq(tuple(out)) if out else EMPTY


def alt(*items: Expr | str) -> Expr:
    """One of the expressions, each once."""
    out: dict[Expr, None] = {}
    for given in items:
        item = Literal(given) if isinstance(given, str) else given
        out.update(dict.fromkeys(item.items if isinstance(item, Alt) else (item,)))
    return next(iter(out)) if len(out) == 1 else Alt(tuple(out))


def rep(item: Expr, least: int = 0, most: int | None = None) -> Expr:
    """A repetition of an expression that has no empty text."""
    if most == 0 or item == EMPTY:
        return EMPTY
    if item == NEVER:
        return NEVER if least else EMPTY
    return item if (least, most) == (1, 1) else Rep(item, least, most)


def optional(item: Expr) -> Expr:
    """The expression or nothing."""
    return rep(item, 0, 1)


def refs(expr: Expr) -> Iterator[str]:
    """Names of the rules in an expression."""
    if isinstance(expr, Ref):
        yield expr.name
    elif isinstance(expr, Seq | Alt):
        for item in expr.items:
            yield from refs(item)
    elif isinstance(expr, Rep):
        yield from refs(expr.item)


def _has_text(expr: Expr, known: set[str]) -> bool:
    if isinstance(expr, Ref):
        return expr.name in known
    if isinstance(expr, Seq):
        return all(_has_text(i, known) for i in expr.items)
    if isinstance(expr, Alt):
        return any(_has_text(i, known) for i in expr.items)
    return not isinstance(expr, Rep) or expr.least == 0 or _has_text(expr.item, known)


def _pruned(expr: Expr, known: set[str]) -> Expr:
    if isinstance(expr, Ref):
        return expr if expr.name in known else NEVER
    if isinstance(expr, Seq):
        return seq(*(_pruned(i, known) for i in expr.items))
    if isinstance(expr, Alt):
        kept = [_pruned(i, known) for i in expr.items]
        return alt(*(i for i in kept if i != NEVER)) if any(i != NEVER for i in kept) else NEVER
    if isinstance(expr, Rep):
        return rep(_pruned(expr.item, known), expr.least, expr.most)
    return expr


def productive(rules: Mapping[str, Expr], root: str) -> dict[str, Expr]:
    """The rules that `root` needs, without what has no finite text. Empty if `root` has none."""
    users: dict[str, set[str]] = {}
    for name, expr in rules.items():
        for used in refs(expr):
            users.setdefault(used, set()).add(name)
    known: set[str] = set()
    todo = list(rules)
    while todo:
        name = todo.pop()
        if name not in known and _has_text(rules[name], known):
            known.add(name)
            todo += users.get(name, ())
    out: dict[str, Expr] = {}
    waiting = [root] if root in known else []
    while waiting:
        name = waiting.pop()
        if name not in out:
            out[name] = _pruned(rules[name], known)
            waiting += refs(out[name])
    return out


def _escaped(c: int) -> str:
    if 0x20 <= c < 0x7F and chr(c) not in '"\\[]^-':
        return chr(c)
    return f"\\x{c:02X}" if c < 0x100 else f"\\u{c:04X}" if c < 0x10000 else f"\\U{c:08X}"


class Printer:
    """Writes rules as GBNF. Repeated groups become rules: libllama multiplies those within each other."""

    def __init__(self) -> None:
        self._groups: dict[Expr, str] = {}
        self._elements = 0

    def print(self, rules: Mapping[str, Expr]) -> str:
        """The grammar. Raises ValueError if it is larger than the runtime takes."""
        lines, size = [], 0
        for line in self._lines(rules.items()):
            size += len(line.encode()) + 1
            if size > MAX_TEXT or self._elements > MAX_ELEMENTS:
                raise ValueError(
                    f"its grammar is larger than {MAX_TEXT >> 20} MiB, or {MAX_ELEMENTS} elements once "
                    "repetitions are written out: use fewer or smaller enums, properties and limits"
                )
            lines.append(line)
        return "\n".join(lines)

    def _lines(self, rules: Iterable[tuple[str, Expr]]) -> Iterator[str]:
        for name, expr in rules:
            yield f"{name} ::= {self._text(expr)}"
        done = 0
        while done < len(self._groups):
            group, name = list(self._groups.items())[done]
            yield f"{name} ::= {self._text(group)}"
            done += 1

    def _text(self, expr: Expr, times: int = 1) -> str:
        if isinstance(expr, Literal):
            self._elements += times * len(expr.text)
            return '"' + "".join(_escaped(ord(c)) for c in expr.text) + '"'
        if isinstance(expr, Class):
            self._elements += times * len(expr.ranges) * 2
            parts = (_escaped(a) + (f"-{_escaped(b)}" if b > a else "") for a, b in expr.ranges)
            return "[" + "".join(parts) + "]"
        if isinstance(expr, Ref):
            self._elements += times
            return expr.name
        if isinstance(expr, Alt):
            return " | ".join(self._text(i, times) for i in expr.items)
        if isinstance(expr, Seq):
            return " ".join(
                f"({self._text(i, times)})" if isinstance(i, Alt) else self._text(i, times)
                for i in expr.items
            )
        return self._repetition(expr, times)

    def _repetition(self, expr: Rep, times: int) -> str:
        item, least, most = expr.item, expr.least, expr.most
        if max(least, most or 0) > MAX_REPETITIONS:
            raise ValueError(f"a repetition is longer than libllama's {MAX_REPETITIONS}")
        if isinstance(item, Seq | Alt | Rep):
            item = Ref(self._groups.setdefault(item, f"group-{len(self._groups)}"))
        written = self._text(item, times * max(1, most if most is not None else least + 1))
        signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
        end = "" if most is None else str(most)
        count = str(least) if least == most else f"{least},{end}"
        return written + signs.get((least, most), f"{{{count}}}")
