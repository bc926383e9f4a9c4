"""JSON schemas as grammars: every text is valid by the package jsonschema, or the schema is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from gbnf_walker import Grammar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sardine_gguf.json_schema import object_grammar, schema_grammar


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def strict(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity, no lone surrogates, no infinite numbers."""
    value = json.loads(text, parse_constant=no_constant)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def check(schema: Any, seed: int = 0, rounds: int = 8) -> list[Any]:
    """Random texts of the schema's grammar, all valid."""
    grammar = Grammar(schema_grammar(schema))
    rng = random.Random(seed)
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    values = []
    for _ in range(rounds):
        text = grammar.write(rng)
        values.append(strict(text))
        validator.validate(values[-1])
    return values


def check_message(error: ValueError, words: str = "") -> None:
    """One line that says what it is about."""
    assert str(error).startswith("JSON schema: ")
    assert "\n" not in str(error)
    assert words in str(error)


# ---- every text is valid ----

NAMES = st.sampled_from(["a", "b", "ab", 'q"', "é", ""])
NUMBERS = st.integers(-30, 30) | st.sampled_from([0.5, -2.25, 1e-9, 1e22, 2**53 + 1, 0.1, -1e17])
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["a", "ab", '"', "\n", "\ud800", "\x7f"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(NAMES, SCALARS, max_size=2)
COUNTS = st.integers(0, 4)
PATTERNS = st.sampled_from(
    ["^a+$", "a", "^(a|bc)*$", r"^\d{2,4}-\w$", "^[^a]$", "^.$", r"^\S\s?$", "^a|b$", "(^a|b)$", "^$", "",
     "^(a?b?)*$", r'^["\\\n]{2}$', "^[é-ü😀]+$", "^(a*)*b$", r"^\W\D$", "^a}$", "^(?:x|y){2}$", "^((a|b)|c)$"]
)  # fmt: skip


def typed(kind: str, **keywords: Any) -> st.SearchStrategy[Any]:
    """Schemas of a type, or of none, with some of its keywords."""
    return st.fixed_dictionaries({}, optional={"type": st.just(kind), **keywords})


def merged(pair: tuple[Any, Any]) -> Any:
    """Both schemas' keywords."""
    return {**pair[0], **pair[1]} if all(isinstance(p, dict) for p in pair) else pair[0]


def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        typed(
            "object",
            properties=st.dictionaries(NAMES, inner, max_size=3),
            required=st.lists(NAMES, max_size=2, unique=True),
            additionalProperties=inner,
        ),
        typed("array", items=inner, prefixItems=st.lists(inner, min_size=1, max_size=2), minItems=COUNTS,
              maxItems=COUNTS),
        *(
            st.fixed_dictionaries(
                {key: st.lists(inner, min_size=1, max_size=3)},
                optional={"type": st.sampled_from(["object", "string", "number", "integer"])},
            )
            for key in ("anyOf", "oneOf", "allOf")
        ),
        st.tuples(inner, inner).map(merged),
        st.just({"$ref": "#"}),
        st.just({"$ref": "#/$defs/x"}),
    )  # fmt: skip


FORMATS = ("date", "time", "date-time", "uuid", "email")
TYPES = ["null", "boolean", "array", "integer"]
LEAVES = st.one_of(
    st.booleans(),
    st.just({}),
    typed("string", minLength=COUNTS, maxLength=COUNTS),
    typed("string", pattern=PATTERNS, minLength=st.integers(0, 1)),
    st.sampled_from([{"type": "string", "format": f} for f in FORMATS]),
    typed("integer", minimum=NUMBERS, maximum=NUMBERS, exclusiveMinimum=NUMBERS, exclusiveMaximum=NUMBERS),
    typed("number", minimum=NUMBERS, maximum=NUMBERS, exclusiveMinimum=NUMBERS, exclusiveMaximum=NUMBERS),
    st.fixed_dictionaries({"type": st.lists(st.sampled_from(TYPES), min_size=1)}),
    st.fixed_dictionaries({"const": VALUES}),
    st.fixed_dictionaries(
        {"enum": st.lists(VALUES, min_size=1, max_size=4)},
        optional={"type": st.sampled_from(["string", "number", "integer", "array"])},
    ),
)  # fmt: skip
INNER = st.recursive(LEAVES, around, max_leaves=8)
SCHEMAS = st.tuples(around(INNER) | LEAVES, INNER).map(
    lambda p: {**p[0], "$defs": {"x": p[1]}} if isinstance(p[0], dict) else p[0]
)
seen = {"written": 0, "refused": 0}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 1000))
def test_every_text_is_valid(schema: Any, seed: int) -> None:
    """Of any schema that is not refused."""
    try:
        grammar = schema_grammar(schema)
    except ValueError as e:
        check_message(e)
        seen["refused"] += 1
        return
    assert grammar
    seen["written"] += 1
    check(schema, seed, rounds=4)


def test_many_schemas_are_not_refused() -> None:
    """The test above would say nothing if all were."""
    if seen["written"] + seen["refused"] == 0:
        test_every_text_is_valid()
    assert seen["written"] > 0.3 * seen["refused"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(NUMBERS, min_size=2, max_size=2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["integer", "number"]),
)
def test_ranges_of_numbers(ends: list[float], low: bool, high: bool, kind: str) -> None:
    """Both ends, one, exclusive or not."""
    schema = {
        "type": kind,
        "exclusiveMinimum" if low else "minimum": min(ends),
        "exclusiveMaximum" if high else "maximum": max(ends),
    }
    try:
        schema_grammar(schema)
    except ValueError as e:
        check_message(e, "no value")
        return
    check(schema, rounds=20)


@settings(max_examples=150, deadline=None)
@given(st.integers(-2000, 2000), st.integers(0, 300), st.integers(-2500, 2500))
def test_integers_of_a_range(low: int, size: int, value: int) -> None:
    """The grammar has every integer of the range and no other."""
    grammar = Grammar(schema_grammar({"type": "integer", "minimum": low, "maximum": low + size}))
    for number in (value, low, low + size, low - 1, low + size + 1, low + size // 2):
        assert grammar.accepts(str(number)) == (low <= number <= low + size)


# ---- valid texts that a user would expect ----

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 300},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"Tag": {"enum": ["x", "y"], "type": "string", "title": "Tag"}},
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "number"},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["v"],
        }
    },
}  # fmt: skip
PET = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    "discriminator": {"propertyName": "kind"},
    "$defs": {
        "cat": {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
                "required": ["kind"]},
        "dog": {"type": "object", "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}},
                "required": ["kind", "name"]},
    },
}  # fmt: skip
ACCEPTED: list[tuple[Any, list[str]]] = [
    (PERSON, ['{"name": "Ann é\\n", "age": 150}', '{"name":"B","age":0,"mail":null,"tags":["x", "y"]}',
              '{\n  "name": "B",\n  "age": 7,\n  "tags": []\n}']),
    (TREE, ['{"v": 1}', '{"v": -1.5e3, "kids": [{"v": 0, "kids": []}, {"v": 2}]}']),
    (PET, ['{"kind": "cat", "lives": 9}', '{"kind": "dog", "name": "Rex"}']),
    ({"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"type": "null"}}}],
      "$defs": {"a": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}},
     ['{"a": 1}', '{"b": null, "a": 1}', '{"a": 1, "b": null}']),
    ({"properties": {"a": {"type": "integer"}}, "allOf": [{"properties": {"a": {"minimum": 5}}}],
      "required": ["a"]},
     ['{"a": 5}', '{"a": 123}']),
    ({"type": "object", "properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
     ['{}', '{"ab": null}', '{"ab": null, "a": 1, "abc": 2}', '{"b": 1}']),
    ({"type": "object"}, ['{}', '{"a": [1, {"b": null}]}']),
    ({"type": "array", "items": {}}, ["[]", '[1, "a", {}]']),
    ({"type": "array", "items": True, "minItems": 1}, ["[null]"]),
    ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
     ['["a", 1]', '["a"]']),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"const": 1}],
      "additionalItems": {"type": "null"}}, ["[1, null, null]"]),
    ({"type": "string", "maxLength": 2000}, ['"' + "é" * 2000 + '"', '"\\ud83d\\ude00"']),
    ({"type": "array", "items": {"type": "null"}, "minItems": 300, "maxItems": 400},
     ["[" + "null," * 349 + "null]"]),
    ({"type": "string", "pattern": "^a}$"}, ['"a}"']),
    ({"type": "string", "pattern": r"^[^\s@]+@[\w.-]+\.[a-z]{2,}$"}, ['"me@example.com"']),
    ({"type": "string", "pattern": "b"}, ['"abc"', '"b"']),
    ({"type": "string", "pattern": '^"\\\\$'}, ['"\\"\\\\"']),
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"1999-12-31"']),
    ({"type": "string", "format": "date-time"}, ['"2024-01-02T23:59:59.5+01:00"', '"2024-01-02T00:00:00Z"']),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1", "0.5", "1.0", "0.125"]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5", "0.0001", "0.999"]),
    ({"type": "number", "minimum": -273.15}, ["-273.15", "-273.1", "-5", "0", "1000.5"]),
    ({"type": "integer", "minimum": 10**20}, [str(10**20), str(10**20 + 5)]),
    ({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}]}, ["3", "4"]),
    ({"enum": [1, 1.0, True, "é\n"]}, ["1", "true", '"é\\n"']),
    ({"anyOf": [{"const": 1}, {"type": "string"}], "type": "integer"}, ["1"]),
    (True, ["null", "[[]]"]),
    ({}, ["-0.5e10", '"\\u00e9"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "texts"), ACCEPTED, ids=range(len(ACCEPTED)))
def test_expected_texts(schema: Any, texts: list[str]) -> None:
    """They are in the grammar as well as valid (but for the order of properties)."""
    grammar = Grammar(schema_grammar(schema))
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    for text in texts:
        validator.validate(strict(text))
        assert grammar.accepts(text) or text == '{"b": null, "a": 1}', text
    check(schema, rounds=30)


REJECTED: list[tuple[Any, list[str]]] = [
    ({"type": "string"}, ['"\n"', '"\\ud800"', '"', '"\x7f"']),
    ({"type": "number"}, ["NaN", "Infinity", "01", "1e999", ".5", "1."]),
    ({"type": "string", "format": "date"}, ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"', '"2024-13-01"']),
    ({"enum": ["1", 2], "type": "string"}, ["2"]),
    ({"type": "string", "pattern": "^a$"}, ['"a\\n"', '"aa"', '""']),
    ({"type": "string", "pattern": "^a|b$"}, ['"cc"', '"bc"']),
    ({"type": "object", "properties": {"a": {"type": "null"}, "b": False}, "additionalProperties": True},
     ['{"b": 1}', '{"a": 1}', '{"a": null, "a": 1}']),
    ({"type": "string", "maxLength": 2}, ['"abc"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "texts"), REJECTED, ids=range(len(REJECTED)))
def test_texts_that_are_not_valid(schema: Any, texts: list[str]) -> None:
    grammar = Grammar(schema_grammar(schema))
    assert not [t for t in texts if grammar.accepts(t)]


def test_any_object() -> None:
    grammar = Grammar(object_grammar())
    for seed in range(50):
        assert isinstance(strict(grammar.write(random.Random(seed))), dict)
    assert not grammar.accepts("[]")
    assert grammar.accepts('{"a": [1, 2.5e-3, {"b": "\\u00e9/"}], "c": null}')


# ---- what is refused, and how ----

ONE_OF = [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]
REFUSED: list[tuple[Any, str]] = [
    ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}},
     "'multipleOf' at #/properties/a"),
    ({"type": "array", "uniqueItems": True, "items": {"type": "null"}}, "'uniqueItems' at #"),
    ({"not": {"type": "null"}}, "'not'"),
    ({"if": {}, "then": {}}, "'if'"),
    ({"patternProperties": {"a": {}}}, "'patternProperties'"),
    ({"type": "strange"}, "'type' at # is \"strange\", expected one of"),
    ({"type": []}, "'type'"),
    ({"$ref": "https://example.com/x.json"}, "in the same schema"),
    ({"$ref": "#/nowhere"}, "nothing at that place"),
    ({"$ref": "#"}, "refers to itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself"),
    ({"properties": 3}, "'properties' at # is 3"),
    ({"properties": {"a": 3}}, "'properties'"),
    ({"$defs": {"a": 3}, "$ref": "#/$defs/a"}, "a is a int"),
    ({"required": "a"}, "'required'"),
    ({"minLength": -1}, "'minLength'"),
    ({"minimum": "3"}, "'minimum'"),
    ({"minimum": float("nan")}, "no JSON"),
    ({"type": "integer", "minimum": 10**400}, "1e300"),
    ([], "list"),
    ("{}", "str"),
    (None, "NoneType"),
    ({"type": "object", "x": {1, 2}}, "no JSON"),
    (False, "no value is valid"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum at # is 5, above maximum"),
    ({"minLength": 5, "maxLength": 3}, "minLength at #"),
    ({"const": "a", "type": "integer"}, "enum or const at #"),
    ({"enum": [1, 2], "type": "string"}, "enum or const at #"),
    ({"enum": ["a"], "pattern": "^a$"}, "beside a pattern"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no value is valid"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "none that ends"),
    ({"required": ["x"], "additionalProperties": False}, "no value is valid"),
    ({"oneOf": ONE_OF}, "oneOf at #.*anyOf"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf at #"),
    ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "oneOf at #"),
    ({"type": "string", "pattern": "^a$", "maxLength": 0}, "write the length into the pattern"),
    ({"type": "string", "pattern": "a(?=b)"}, "pattern"),
    ({"type": "string", "pattern": r"(a)\1"}, "pattern"),
    ({"type": "string", "pattern": r"\bword"}, "pattern"),
    ({"type": "string", "pattern": "a^b"}, r"\^ inside"),
    ({"type": "string", "pattern": "^a$b"}, r"\$ inside"),
    ({"type": "string", "pattern": "(a"}, "no regular expression"),
    ({"type": "string", "pattern": "^[]a]$"}, "dialects"),
    ({"type": "string", "pattern": "^[^]a]$"}, "dialects"),
    ({"type": "string", "pattern": "^a{,3}$"}, "dialects"),
    ({"type": "string", "pattern": r"^\p{L}$"}, "dialects"),
    ({"type": "string", "pattern": "(?i)a"}, "group"),
    ({"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}]}, "one pattern"),
    ({"type": "object", "minProperties": 1}, "'minProperties'"),
    ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, "'maxProperties'"),
    ({"properties": {"a": {"$id": "x"}}}, r"'\$id'"),
    ({"type": "string", "maxLength": 10**9}, "minLength and maxLength at # come to 1000000000, .* 2000"),
    ({"type": "array", "items": {}, "maxItems": 10**8}, "minItems and maxItems at # .* 2000"),
    ({"type": "string", "pattern": "^a{3000}$"}, "2000"),
    ({"anyOf": [{"minLength": i} for i in range(40)],
      "allOf": [{"anyOf": [{"maxLength": i} for i in range(40)]}]},
     "1000 combinations"),
    ({"enum": ["x" * 1000 + str(i) for i in range(1100)]}, "larger than 1 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "why"), REFUSED, ids=range(len(REFUSED)))
def test_refused(schema: Any, why: str) -> None:
    """A ValueError of one line with the keyword and the place, before much work is done."""
    with pytest.raises(ValueError, match=why) as caught:
        schema_grammar(schema)
    assert str(caught.value).startswith("JSON schema: ")
    assert "\n" not in str(caught.value)


def nested(n: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(n):
        schema = {"allOf": [schema]}
    return schema


def test_deep_schemas() -> None:
    """Refused, or written without a recursion as deep."""
    with pytest.raises(ValueError, match=r"nested too deep|no JSON"):
        schema_grammar(nested(100_000))
    with pytest.raises(ValueError, match="nested too deep"):
        schema_grammar(
            {
                "$ref": "#/$defs/0",
                "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(5000)},
            }
        )
    schema: Any = {"type": "null"}
    for _ in range(200):
        schema = {"type": "array", "items": schema, "minItems": 1}
    assert check(schema, rounds=1) == [json.loads("[" * 200 + "null" + "]" * 200)]


def test_the_schema_is_left_alone() -> None:
    before = json.dumps(PERSON)
    schema_grammar(PERSON)
    assert json.dumps(PERSON) == before
