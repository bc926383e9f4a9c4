"""Whether a value is valid by a schema: for enum and const, whose values are few."""

from __future__ import annotations

import math
from typing import Any

from sardine_gguf.json_schema.document import Document, SchemaError


class Unknown(Exception):
    """It cannot be said cheaply."""


def value_key(value: Any) -> Any:
    """The same for values that are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return ("object", frozenset((k, value_key(v)) for k, v in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(value_key, value)))
    return (isinstance(value, bool), value)


def is_type(value: Any, name: str) -> bool:
    """Whether a value is of a type by JSON Schema's name for it."""
    if isinstance(value, bool) or name == "boolean":
        return isinstance(value, bool) and name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value == math.floor(value))
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "number": int | float, "null": type(None),
    }  # fmt: skip
    return isinstance(value, kinds[name])


def is_valid(doc: Document, value: Any, pointer: str, depth: int = 0) -> bool:
    """Whether a value is valid by the schema at a place.

    Raises:
        Unknown: a regular expression would say, or the schema refers to itself.
    """
    s = doc.at(pointer)
    doc.spend()
    if isinstance(s, bool):
        return s
    if depth > 100:
        raise Unknown

    def holds(item: Any, *keys: str | int) -> bool:
        return is_valid(doc, item, doc.child(pointer, *keys), depth + 1)

    types = s.get("type", ())
    types = [types] if isinstance(types, str) else types
    if types and not any(is_type(value, t) for t in types):
        return False
    key = value_key(value)
    if "const" in s and value_key(s["const"]) != key:
        return False
    if "enum" in s and key not in map(value_key, s["enum"]):
        return False
    if isinstance(value, str) and not _string(s, value):
        return False
    if is_type(value, "number") and not _number(s, value):
        return False
    if isinstance(value, list):
        if not s.get("minItems", 0) <= len(value) <= s.get("maxItems", math.inf):
            return False
        if not all(
            holds(item, *where)
            for item, where in zip(value, item_places(s, len(value)), strict=True)
            if where
        ):
            return False
    if isinstance(value, dict):
        if not s.get("minProperties", 0) <= len(value) <= s.get("maxProperties", math.inf):
            return False
        if not set(s.get("required", ())) <= set(value):
            return False
        for name, item in value.items():
            if name in s.get("properties", ()):
                if not holds(item, "properties", name):
                    return False
            elif "additionalProperties" in s and not holds(item, "additionalProperties"):
                return False
    if "$ref" in s and not is_valid(doc, value, doc.target(pointer), depth + 1):
        return False
    found = {
        k: [holds(value, k, i) for i in range(len(s.get(k, ())))]
        for k in ("allOf", "anyOf", "oneOf")
    }
    return (
        all(found["allOf"])
        and ("anyOf" not in s or any(found["anyOf"]))
        and ("oneOf" not in s or sum(found["oneOf"]) == 1)
    )


def _string(s: dict[str, Any], value: str) -> bool:
    if not s.get("minLength", 0) <= len(value) <= s.get("maxLength", math.inf):
        return False
    if "pattern" in s:
        raise Unknown
    return True


def _number(s: dict[str, Any], value: float) -> bool:
    if not s.get("minimum", -math.inf) <= value <= s.get("maximum", math.inf):
        return False
    if not s.get("exclusiveMinimum", -math.inf) < value < s.get("exclusiveMaximum", math.inf):
        return False
    return "multipleOf" not in s or (s["multipleOf"] == 1 and value == math.floor(value))


def item_places(s: dict[str, Any], n: int) -> list[tuple[str | int, ...]]:
    """Where the schema of each of n items is, from the array's; () where there is none."""
    listed = isinstance(s.get("items"), list)
    prefix = "items" if listed else "prefixItems"
    rest = "additionalItems" if listed else "items"
    count = min(n, len(s.get(prefix, ())))
    fixed: list[tuple[str | int, ...]] = [(prefix, i) for i in range(count)]
    more: tuple[str | int, ...] = (rest,) if rest in s else ()
    return [*fixed, *[more] * (n - len(fixed))]


def checked_values(doc: Document, values: list[Any], node: tuple[str, ...]) -> list[Any]:
    """The values that are valid by all schemas of a node, each once.

    Raises:
        SchemaError: it cannot be said.
    """
    out: dict[Any, Any] = {}
    for value in values:
        try:
            if all(is_valid(doc, value, p) for p in node):
                out.setdefault(value_key(value), value)
        except Unknown:
            raise SchemaError(
                f"enum or const at {node[0]} stands beside a pattern, or refers to itself: keep the "
                "values alone"
            ) from None
    return list(out.values())
