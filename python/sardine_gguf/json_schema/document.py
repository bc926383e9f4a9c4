"""A JSON schema as a document: its places, their keywords checked, what holds at one and the same value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

Node = tuple[str, ...]  # JSON pointers of schemas that one value must meet, all of them

_MAX_CASES = 1000
_MAX_STEPS = 100_000
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Keywords that say nothing about which values are valid.
_ANNOTATIONS = {
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions",
    "deprecated", "readOnly", "writeOnly", "format", "contentMediaType", "contentEncoding", "discriminator",
}  # fmt: skip


class SchemaError(ValueError):
    """What is wrong with a schema, or cannot be expressed, with the place and a remedy."""


def _is_schema(v: Any) -> bool:
    return isinstance(v, bool | dict)


def _is_list(v: Any) -> bool:
    return isinstance(v, list) and bool(v) and all(_is_schema(s) for s in v)


def _is_number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool)


def _is_count(v: Any) -> bool:
    return _is_number(v) and v >= 0 and v == math.floor(v)


def _is_names(v: Any) -> bool:
    return isinstance(v, list) and all(isinstance(n, str) for n in v)


_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (
        lambda v: (
            v in TYPES
            if isinstance(v, str)
            else isinstance(v, list)
            and bool(v)
            and all(isinstance(t, str) and t in TYPES for t in v)
        ),
        "one of " + ", ".join(TYPES) + ", or a list of them",
    ),
    "properties": (
        lambda v: isinstance(v, dict) and all(map(_is_schema, v.values())),
        "an object of schemas",
    ),
    "required": (_is_names, "a list of names"),
    "additionalProperties": (_is_schema, "a schema"),
    "additionalItems": (_is_schema, "a schema"),
    "items": (lambda v: _is_schema(v) or _is_list(v), "a schema"),
    "enum": (lambda v: isinstance(v, list) and bool(v), "a list of values"),
    "const": (lambda v: True, ""),
    "pattern": (lambda v: isinstance(v, str), "a regular expression"),
    "$ref": (lambda v: isinstance(v, str), "a JSON pointer such as #/$defs/name"),
    "uniqueItems": (lambda v: isinstance(v, bool), "true or false"),
    "multipleOf": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), (_is_list, "a list of schemas")),
    **dict.fromkeys(_LIMITS, (_is_number, "a number")),
    **dict.fromkeys(_COUNTS, (_is_count, "a whole number, 0 or more")),
}
_PAIRS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
)


def _not_supported(key: str, place: str) -> str:
    return (
        f"keyword '{key}' at {place} is not supported by the grammar: leave it out, and check the answer "
        "against it"
    )


class Document:
    """A schema by JSON pointers, "#" for the whole.

    Raises:
        SchemaError: it is no JSON.
    """

    def __init__(self, schema: Any) -> None:
        try:
            root = json.loads(json.dumps(schema, allow_nan=False))
        except (TypeError, ValueError) as e:
            raise SchemaError(f"it is no JSON: {e}") from None
        self._at: dict[str, Any] = {"#": root}
        self._alternatives: dict[str, list[Node]] = {}
        self._steps = 0

    def at(self, pointer: str) -> Any:
        """The schema at a place, a dict of known keywords or a bool."""
        return self._at[pointer]

    def child(self, pointer: str, *keys: str | int) -> str:
        """The place of a schema inside of one."""
        value = self._at[pointer]
        for key in keys:
            value = value[key]
            pointer += "/" + str(key).replace("~", "~0").replace("/", "~1")
        if pointer not in self._at:
            self._check(pointer, value)
            self._at[pointer] = value
        return pointer

    def check_root(self) -> None:
        """Raises SchemaError if the whole is no schema that can be expressed."""
        self._check("#", self._at["#"])

    def spend(self, steps: int = 1) -> None:
        """Counts work. Raises SchemaError when it is too much."""
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise SchemaError(
                "its combinations of allOf, anyOf and $ref are too many: write the schema more plainly"
            )

    def _check(self, place: str, schema: Any) -> None:
        self.spend()
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            kind = type(schema).__name__
            raise SchemaError(f"{place} is a {kind}, expected a schema: an object, true or false")
        for key, value in schema.items():
            if key in _ANNOTATIONS or key.startswith("x-"):
                continue
            if key not in _SHAPES:
                raise SchemaError(_not_supported(key, place))
            holds, expected = _SHAPES[key]
            if not holds(value):
                shown = json.dumps(value)
                shown = shown if len(shown) <= 60 else shown[:57] + "..."
                raise SchemaError(f"keyword '{key}' at {place} is {shown}, expected {expected}")
        if place != "#" and "$id" in schema:
            raise SchemaError(f"keyword '$id' at {place} changes what $ref means: leave it out")
        for low, high in _PAIRS:
            if low in schema and high in schema and schema[low] > schema[high]:
                raise SchemaError(
                    f"{low} at {place} is {schema[low]}, above {high}, which is {schema[high]}"
                )
        for key, matters in (
            ("uniqueItems", schema.get("uniqueItems", False) and schema.get("maxItems", 2) > 1),
            ("multipleOf", schema.get("multipleOf", 1) != 1),
        ):
            if matters:
                raise SchemaError(_not_supported(key, place))

    def target(self, pointer: str) -> str:
        """The place that a schema's $ref names.

        Raises:
            SchemaError: it is not inside of this document.
        """
        ref = self._at[pointer]["$ref"]
        value, place = self._at["#"], "#"
        if ref != "#" and not ref.startswith("#/"):
            raise SchemaError(
                f"$ref at {pointer} is {ref!r}, expected a place in the same schema, such as #/$defs/name"
            )
        for raw in ref.split("/")[1:]:
            key = unquote(raw).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise SchemaError(
                    f"$ref at {pointer} is {ref!r}, and there is nothing at that place"
                )
            place += "/" + key.replace("~", "~0").replace("/", "~1")
        if place not in self._at:
            self._check(place, value)
            self._at[place] = value
        return place

    def alternatives(self, pointer: str, above: tuple[str, ...] = ()) -> list[Node]:
        """The ways to meet a schema: places whose own keywords must all hold, $ref and allOf followed.

        Raises:
            SchemaError: it refers to itself without a value in between, or has too many ways.
        """
        if pointer in self._alternatives:
            return self._alternatives[pointer]
        if pointer in above:
            raise SchemaError(f"{pointer} refers to itself: put a property or an item in between")
        schema = self._at[pointer]
        if isinstance(schema, bool):
            return [()] if schema else []
        above = (*above, pointer)
        ways: list[Node] = [(pointer,)]
        if "$ref" in schema:
            ways = self._both(ways, self.alternatives(self.target(pointer), above), pointer)
        for i in range(len(schema.get("allOf", ()))):
            ways = self._both(
                ways, self.alternatives(self.child(pointer, "allOf", i), above), pointer
            )
        for key in ("anyOf", "oneOf"):
            if key not in schema:
                continue
            places = [self.child(pointer, key, i) for i in range(len(schema[key]))]
            found = [way for place in places for way in self.alternatives(place, above)]
            ways = self._both(ways, found, pointer)
        self._alternatives[pointer] = ways
        return ways

    def cases(self, node: Node) -> list[Node]:
        """The ways to meet several schemas at once."""
        ways: list[Node] = [()]
        for pointer in node:
            ways = self._both(ways, self.alternatives(pointer), pointer)
        return ways

    def _both(self, a: list[Node], b: Iterable[Node], place: str) -> list[Node]:
        out: dict[Node, None] = {}
        for x in a:
            for y in b:
                self.spend(1 + len(x) + len(y))
                out[tuple(dict.fromkeys((*x, *y)))] = None
                if len(out) > _MAX_CASES:
                    raise SchemaError(
                        f"the alternatives at {place} have more than {_MAX_CASES} combinations: write the "
                        "schema more plainly"
                    )
        return list(out)
