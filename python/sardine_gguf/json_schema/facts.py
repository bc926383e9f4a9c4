"""What several schemas together say of one value: its types, numbers, lengths and members."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sardine_gguf.json_schema.document import Document, Node
from sardine_gguf.json_schema.values import item_places

# A number is an integer or, for want of a name, a fraction.
KINDS = ("object", "array", "string", "integer", "fraction", "boolean", "null")
_KINDS_OF = {k: {k} for k in KINDS} | {"number": {"integer", "fraction"}}
_SPEAK_OF = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


@dataclass(frozen=True)
class Bound:
    """An end of a range of numbers."""

    value: int | float
    exclusive: bool


class Facts:
    """Schemas that hold at once, each by its own keywords alone ($ref, allOf and the like being followed)."""

    def __init__(self, doc: Document, case: Node) -> None:
        self.doc, self.case = doc, case
        self.schemas: list[tuple[str, dict[str, Any]]] = [(p, doc.at(p)) for p in case]

    def kinds(self, *, inferred: bool) -> set[str]:
        """The types that are left; without "type", if `inferred`, those that keywords speak of."""
        kinds = set(KINDS)
        typed = False
        for _, s in self.schemas:
            if "type" in s:
                names = [s["type"]] if isinstance(s["type"], str) else s["type"]
                kinds &= set().union(*(_KINDS_OF[n] for n in names))
                typed = True
            if "multipleOf" in s:
                kinds -= {"fraction"}
        if inferred and not typed:
            spoken = {
                kind
                for name, keys in _SPEAK_OF.items()
                for kind in _KINDS_OF[name]
                if any(k in s for _, s in self.schemas for k in keys)
            }
            kinds &= spoken or kinds
        return kinds

    def values(self) -> list[Any] | None:
        """The values that enum or const lists, before any other keyword; None if neither is there."""
        for _, s in self.schemas:
            if "const" in s:
                return [s["const"]]
        return next((s["enum"] for _, s in self.schemas if "enum" in s), None)

    def span(self, low: str, high: str) -> tuple[int, int | None]:
        """The least and the most by two keywords that count."""
        least = max((int(s[low]) for _, s in self.schemas if low in s), default=0)
        most = min((int(s[high]) for _, s in self.schemas if high in s), default=None)
        return least, most

    def lower_bounds(self) -> Iterator[Bound]:
        """Of numbers."""
        return self._bounds("minimum", "exclusiveMinimum")

    def upper_bounds(self) -> Iterator[Bound]:
        """Of numbers."""
        return self._bounds("maximum", "exclusiveMaximum")

    def _bounds(self, *keys: str) -> Iterator[Bound]:
        for _, s in self.schemas:
            for key in keys:
                if key in s:
                    yield Bound(s[key], key.startswith("exclusive"))

    def names(self) -> dict[str, bool]:
        """Properties that are declared or required, in order, and whether they are required."""
        required = {n for _, s in self.schemas for n in s.get("required", ())}
        declared = [n for _, s in self.schemas for n in s.get("properties", ())]
        listed = [n for _, s in self.schemas for n in s.get("required", ())]
        return {n: n in required for n in dict.fromkeys((*declared, *listed))}

    def is_open(self) -> bool:
        """Whether other properties are written: without additionalProperties, not beside declared ones."""
        return not any(
            "properties" in s and "additionalProperties" not in s for _, s in self.schemas
        )

    def property(self, name: str) -> Node:
        """The schemas of a property's value."""
        found = []
        for place, s in self.schemas:
            if name in s.get("properties", ()):
                found.append(self.doc.child(place, "properties", name))
            elif "additionalProperties" in s:
                found.append(self.doc.child(place, "additionalProperties"))
        return tuple(dict.fromkeys(found))

    def other_properties(self) -> Node:
        """The schemas of the values of properties that are not named."""
        return tuple(
            self.doc.child(p, "additionalProperties")
            for p, s in self.schemas
            if "additionalProperties" in s
        )

    def items(self) -> tuple[int, int | None]:
        """Fewest and most items. Without a schema for items, there are none beyond prefixItems'."""
        least, most = self.span("minItems", "maxItems")
        for _, s in self.schemas:
            fixed = self._fixed(s)
            if fixed and not item_places(s, fixed + 1)[fixed]:
                most = fixed if most is None else min(most, fixed)
        return least, most

    def fixed_items(self) -> int:
        """How many items have schemas of their own."""
        return max((self._fixed(s) for _, s in self.schemas), default=0)

    @staticmethod
    def _fixed(s: dict[str, Any]) -> int:
        listed = s.get("items")
        return len(listed if isinstance(listed, list) else s.get("prefixItems", ()))

    def item(self, i: int) -> Node:
        """The schemas of an item."""
        found = [(p, item_places(s, i + 1)[i]) for p, s in self.schemas]
        return tuple(dict.fromkeys(self.doc.child(p, *where) for p, where in found if where))


def range_is_empty(low: Iterator[Bound], high: Iterator[Bound]) -> bool:
    """Whether no number is within all bounds."""
    lows = list(low) or [Bound(-math.inf, False)]
    highs = list(high) or [Bound(math.inf, False)]
    return any(
        a.value > b.value or (a.value == b.value and (a.exclusive or b.exclusive))
        for a in lows
        for b in highs
    )
