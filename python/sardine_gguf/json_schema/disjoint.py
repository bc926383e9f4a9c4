"""Proofs that what the grammar writes for one alternative of oneOf is not valid by another."""

from __future__ import annotations

from itertools import chain

from sardine_gguf.json_schema.document import Document, Node, SchemaError
from sardine_gguf.json_schema.facts import Facts, range_is_empty
from sardine_gguf.json_schema.values import Unknown, is_valid

_DEEPEST = 4


def check_exclusive(doc: Document, case: Node) -> None:
    """Raises SchemaError unless texts of a case are valid by one alternative only of each oneOf in it."""
    for place in case:
        count = len(doc.at(place).get("oneOf", ()))
        ways = [doc.alternatives(doc.child(place, "oneOf", i)) for i in range(count)]
        chosen = [i for i, ws in enumerate(ways) if any(set(w) <= set(case) for w in ws)]
        for i, ws in enumerate(ways):
            if i in chosen[:1]:
                continue
            if i in chosen or not all(_never_both(doc, case, w, 0) for w in ws):
                raise SchemaError(
                    f"oneOf at {place}: a value may be valid by both its numbers {chosen[0]} and {i}: give "
                    "them types that differ, or a required property with a const that differs, or use anyOf"
                )


def _never_both(doc: Document, written: Node, other: Node, depth: int) -> bool:
    """Whether no text written for a case is valid by all schemas of another."""
    doc.spend()
    a, b = Facts(doc, written), Facts(doc, other)
    for values, test in ((a.values(), other), (b.values(), written)):
        if values is not None:
            try:
                if not any(all(is_valid(doc, v, p) for p in test) for v in values):
                    return True
            except Unknown:
                pass
    shared = a.kinds(inferred=True) & b.kinds(inferred=False)
    return all(_kind_differs(a, b, kind, depth) for kind in shared)


def _kind_differs(a: Facts, b: Facts, kind: str, depth: int) -> bool:
    if kind in ("integer", "fraction"):
        return range_is_empty(
            chain(a.lower_bounds(), b.lower_bounds()), chain(a.upper_bounds(), b.upper_bounds())
        )
    if kind == "string":
        return _apart(a.span("minLength", "maxLength"), b.span("minLength", "maxLength"))
    if kind == "array":
        return _apart(a.items(), b.span("minItems", "maxItems"))
    return kind == "object" and depth < _DEEPEST and _objects_differ(a, b, depth)


def _apart(a: tuple[int, int | None], b: tuple[int, int | None]) -> bool:
    return (a[1] is not None and a[1] < b[0]) or (b[1] is not None and b[1] < a[0])


def _objects_differ(a: Facts, b: Facts, depth: int) -> bool:
    """A property that one of them needs, and that the other has not, or with other values."""
    mine, theirs = a.names(), b.names()
    for name in dict.fromkeys((*mine, *theirs)):
        if not (mine.get(name) or theirs.get(name)):
            continue
        if name not in mine and not a.is_open():
            return True
        written = a.doc.cases(a.property(name))
        valid = b.doc.cases(b.property(name))
        if all(_never_both(a.doc, w, v, depth + 1) for w in written for v in valid):
            return True
    return False
