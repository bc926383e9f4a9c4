"""OpenAI's response_format as a GBNF grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keywords that say nothing about which values are valid.
_ANNOTATIONS = {
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions",
    "deprecated", "readOnly", "writeOnly", "format",
}  # fmt: skip


def response_grammar(response_format: Mapping[str, Any] | None) -> str | None:
    """GBNF for {"type": "json_object"}, optionally with "schema", and for {"type": "json_schema", ...}.

    None for no format and for {"type": "text"}.

    Raises:
        ValueError: the format is not known, or its schema has something that the grammar cannot express.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise TypeError(f"response_format is a {type(response_format).__name__}, expected a dict")
    rest = {k: v for k, v in response_format.items() if k != "type"}
    kind = response_format.get("type")
    schema = rest.pop("schema", None)
    if kind == "json_schema" and schema is None:
        wrapped = rest.pop("json_schema", None)
        schema = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
        if schema is None:
            raise ValueError(
                'response_format of type json_schema needs {"json_schema": {"schema": ...}}'
            )
    if kind not in ("text", "json_object", "json_schema"):
        raise ValueError(
            f"response_format has type {kind!r}, expected text, json_object or json_schema"
        )
    if rest or (kind == "text" and schema is not None):
        name = next(iter(rest), "schema")
        raise ValueError(f"response_format of type {kind} has an unknown key {name!r}")
    if kind == "text":
        return None
    if schema is not None:
        return schema_grammar(schema)
    from llama_cpp.llama_grammar import JSON_GBNF

    return str(JSON_GBNF)


def schema_grammar(schema: Any) -> str:
    """GBNF of the JSON texts that a schema describes, by llama_cpp's converter.

    Raises:
        ValueError: the schema is none, or has a keyword that the converter would leave out.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"JSON schema: it is a {type(schema).__name__}, expected an object")
    try:
        copy = json.loads(json.dumps(schema))
        _rename_definitions(copy)
        for _ in _walk(copy, "$"):
            pass
        return _convert(copy)
    except ValueError as e:
        raise ValueError(f"JSON schema: {e}") from None
    except RecursionError:
        raise ValueError("JSON schema: it is nested too deep") from None
    except (AssertionError, LookupError, TypeError, AttributeError, RuntimeError) as e:
        raise ValueError(f"JSON schema: it is malformed or not supported: {e!r}") from None


def _convert(schema: dict[str, Any]) -> str:
    """llama_cpp's conversion, with two mends.

    Its literals leave backslashes as they are, and its strings may hold control characters.
    """
    from llama_cpp.llama_grammar import SchemaConverter

    class Converter(SchemaConverter):
        def _format_literal(self, literal: str) -> str:
            escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
            return '"' + "".join(escapes.get(c, c) for c in literal) + '"'

    options = {"prop_order": {}, "allow_fetch": False, "dotall": False, "raw_pattern": False}
    converter: Any = Converter(**options)  # type: ignore[no-untyped-call]
    converter.visit(converter.resolve_refs(schema, "schema"), "")
    loose, strict = r'char ::= [^"\\] |', r'char ::= [^"\\\x7F\x00-\x1F] |'
    lines = converter.format_grammar().split("\n")
    return "\n".join(
        line.replace(loose, strict) if line.startswith(loose) else line for line in lines
    )


def _check_pattern(pattern: str, place: str) -> None:
    """Refuses patterns whose texts the converter would not hold to, or that could leave the JSON string."""
    body = re.sub(r"\[[^]]*\]", "", pattern)
    depth = 0
    for c in body:
        depth += (c == "(") - (c == ")")
        if c in '."\\' or (c == "|" and depth == 0):
            raise ValueError(f"the pattern at {place} has {c!r}, which is not supported there")
    for inside in re.findall(r"\[([^]]*)\]", pattern):
        ranges = [(a, b) for a, b in re.findall(r"(.)-(.)", inside, re.DOTALL)]
        if inside.startswith("^") or set('"\\') & set(inside):
            raise ValueError(f"the pattern at {place} has [{inside}], which is not supported")
        if any(a < " " or a <= '"' <= b or a <= "\\" <= b for a, b in ranges):
            raise ValueError(
                f"the pattern at {place} has [{inside}] with a quote or backslash in it"
            )


def _rename_definitions(schema: dict[str, Any]) -> None:
    """Definitions get names that no rule of the grammar has: the converter would take one for the other."""
    renamed = {}
    for section in ("$defs", "definitions"):
        entries = schema.get(section)
        if not isinstance(entries, dict):
            continue
        new = {}
        for i, (name, value) in enumerate(entries.items()):
            new[f"sardine-{section.lstrip('$')}-{i}"] = value
            escaped = name.replace("~", "~0").replace("/", "~1")
            renamed[f"#/{section}/{escaped}"] = f"#/{section}/sardine-{section.lstrip('$')}-{i}"
        schema[section] = new

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                node["$ref"] = renamed.get(node["$ref"], node["$ref"])
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(schema)


def _honoured(s: dict[str, Any], place: str) -> set[str]:
    """The keywords that the converter reads of a schema, in the order in which it looks."""
    kind = s.get("type")
    if "$ref" in s:
        return {"$ref"}
    for union in ("oneOf", "anyOf"):
        if union in s:
            return {union}
    if isinstance(kind, list):
        return {"type"}
    for fixed in ("const", "enum"):
        if fixed in s:
            return {fixed, "type"}
    if kind in (None, "object") and (
        "properties" in s or s.get("additionalProperties", True) is not True
    ):
        unknown = set(s.get("required", ())) - set(s.get("properties", ()))
        if unknown:
            raise ValueError(
                f"'{min(unknown)}' at {place} is required but not among the properties"
            )
        if s.get("properties") and s.get("additionalProperties") not in (None, False):
            raise ValueError(f"additionalProperties beside properties at {place} are not supported")
        return {"type", "properties", "required", "additionalProperties"}
    if kind in (None, "object") and "allOf" in s:
        return {"type", "allOf"}
    if kind in (None, "array") and ("items" in s or "prefixItems" in s):
        items = s.get("items") or s.get("prefixItems")
        if not isinstance(items, list):
            return {"type", "items", "minItems", "maxItems"}
        exact = all(s.get(k, len(items)) == len(items) for k in ("minItems", "maxItems"))
        return {"type", "items", "prefixItems"} | ({"minItems", "maxItems"} if exact else set())
    if kind in (None, "string") and "pattern" in s:
        _check_pattern(s["pattern"], place)
        return {"type", "pattern"}
    if kind == "string":
        return {"type", "minLength", "maxLength"}
    return {"type"} | ({"additionalProperties"} if kind == "object" else set())


def _walk(s: Any, place: str) -> Iterator[None]:
    """Visits every schema inside of one. Raises ValueError where a keyword would be left out."""
    if not isinstance(s, dict):
        raise ValueError(f"{place} is {s!r}, expected an object")
    honoured = _honoured(s, place)
    for key in s:
        if key not in honoured and key not in _ANNOTATIONS:
            raise ValueError(f"keyword '{key}' at {place} is not supported by the grammar")
    yield
    for key in ("properties", "$defs", "definitions"):
        for name, child in s.get(key, {}).items():
            yield from _walk(child, f"{place}.{name}")
    for key in ("oneOf", "anyOf", "allOf", "prefixItems"):
        for i, child in enumerate(s.get(key, ()) if key in honoured else ()):
            yield from _walk(child, f"{place}.{key}[{i}]")
    items = s.get("items")
    for i, child in enumerate(items if isinstance(items, list) else [items] if items else ()):
        yield from _walk(child, f"{place}.items[{i}]")
    if isinstance(s.get("additionalProperties"), dict):
        yield from _walk(s["additionalProperties"], f"{place}.additionalProperties")
