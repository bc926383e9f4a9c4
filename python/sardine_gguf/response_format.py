"""OpenAI's response_format as a GBNF grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sardine_gguf.json_schema import object_grammar, schema_grammar


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
    return object_grammar()
