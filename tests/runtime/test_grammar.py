"""Grammars: what they allow, what is refused and how, JSON schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammar_texts import rules
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_grammar
from models import TinyModel, random_tokens
from sardine_gguf import GrammarTooComplex, Sardine, SardineError
from sardine_gguf.json_schema import object_grammar, schema_grammar
from sardine_gguf.response_format import response_grammar

PROMPT = random_tokens(8, seed=2)


@pytest.fixture(scope="module")
def model(tiny: TinyModel) -> Iterator[Sardine]:
    with tiny.open(n_ctx=2048) as m:
        yield m


def write(m: Sardine, grammar: str, seed: int = 1, **options: Any) -> tuple[str, str | None]:
    """A text by a grammar, and why it ended."""
    defaults: dict[str, Any] = {"seed": seed, "max_tokens": 200, "temperature": 1.5}
    g = m.start(PROMPT, grammar=grammar, **{**defaults, **options})
    return "".join(p for _, p in g), g.finish_reason


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ("root ::= [a-c]{3} [^a-z]{2}", "[a-c]{3}[^a-z]{2}"),
        ('root ::= ("a" | "b" x)+ "."\nx ::= [0-9]{1,3}?', r"(a|b([0-9]{1,3})?)+\."),
        ('root ::= # a comment\n  "x" # another\n', "x"),
        ('root ::= "\\x41\\u00e9\\U0001F600\\n\\t\\\\\\"\\[\\]"', 'Aé😀\n\t\\\\"\\[\\]'),
        ("root ::= a{0} b\na ::= [0-9]\nb ::= [é-ü]", "[é-ü]"),
        ("root ::= (\n  [a]\n  |\n  [b-]\n)", "[ab-]"),
        ('root ::= "日本" [本日] .', "日本[本日](.|\ufffd+)"),
        ("root ::= [\\]^a-]", "[\\]^a-]"),
        ('root ::= "a"{2}{2}', "aaaa"),
        ('root ::= ""', ""),
    ],
)
def test_texts_follow(model: Sardine, grammar: str, pattern: str) -> None:
    """Whatever is drawn matches the regular expression that says the same, and then the text ends."""
    for seed in range(6):
        text, why = write(model, grammar, seed)
        assert why == "stop"
        assert re.fullmatch(pattern, text, re.DOTALL), text


def test_greedy_takes_the_best_allowed(model: Sardine) -> None:
    """At temperature 0 every token is the likeliest of those that the grammar allows."""
    g = model.start(PROMPT, grammar="root ::= [0-9]{8}", temperature=0)
    list(g)
    digits = {
        t for t in range(model.n_vocab) if re.fullmatch(rb"[0-9]+", model.detokenize_bytes([t]))
    }
    model.reset()
    logits = model.eval([*PROMPT, *g.tokens])[len(PROMPT) - 1 :]
    length = 0
    for row, token in zip(logits, g.tokens[:-1], strict=False):
        allowed = [t for t in digits if length + len(model.detokenize([t])) <= 8]
        assert token == max(allowed, key=lambda t: row[t])
        length += len(model.detokenize([token]))
    assert g.tokens[-1] == model.token_eos()


def test_control_tokens_do_not_spell_rules(model: Sardine) -> None:
    """A control token whose name a rule allows is not drawn, unless the grammar names it as a token."""
    bias = {3: 1000.0}
    name = model.model.token_text(3)
    assert name == "[INST]"
    text, _ = write(model, f'root ::= "{name.replace("[", "").replace("]", "")}"', logit_bias=bias)
    assert text == "INST"
    text, _ = write(model, 'root ::= "\\[INST\\]"', logit_bias=bias)
    assert text == "[INST]"
    g = model.start(PROMPT, grammar='root ::= <[3]> <s> !<[3]> "x"', logit_bias=bias)
    list(g)
    assert g.tokens[:2] == [3, 1]
    assert g.tokens[2] != 3


def chain(n: int, rule: str) -> str:
    """Rules that begin with each other."""
    rules = [rule.format(i, i + 1) for i in range(n)]
    return "\n".join(["root ::= r0", *rules, f'r{n} ::= "a"'])


BAD = [
    ("", 1, "empty"),
    ("root", 1, "::="),
    ("root ::= x", 1, "'x' is not defined"),
    ("x ::= [a]", 1, "no rule 'root'"),
    ('root ::= "a"\nroot ::= "b"', 2, "twice"),
    ('root ::= "a"\n\nx := "b"', 3, "::="),
    ('root ::= "abc', 1, "does not end"),
    ('root ::= "a\n\n', 1, "does not end"),
    ("root ::= [abc", 1, "does not end"),
    ("root ::= [a-", 1, "does not end"),
    ("root ::= []", 1, "empty"),
    ("root ::= [^]", 1, "empty"),
    ('root ::= "\\q"', 1, "escape"),
    ('root ::= "\\x4"', 1, "hexadecimal"),
    ('root ::= "\\', 1, "escape"),
    ('root ::= ("a"', 1, "not closed"),
    ('root ::= "a")', 1, "unexpected"),
    ("root ::= *", 1, "nothing to repeat"),
    ('root ::= "" *', 1, "nothing to repeat"),
    ('root ::= "a"{', 1, "number"),
    ('root ::= "a"{2', 1, "'}'"),
    ('root ::= "a"{3,1}', 1, "below"),
    ('root ::= "a"{2001}', 1, "2000"),
    ('root ::= "a"{99999999999999999999999}', 1, "2000"),
    ('root ::= (("a"{0,50}){50}){50}', 1, "2000"),
    ('root ::= "a"\n  "b"', 2, "name of a rule"),
    ('root ::= "a" $', 1, "unexpected"),
    ('root ::= "a"\x00', 1, "NUL"),
    ("root ::= <[99999]>", 1, "vocabulary"),
    ("root ::= <no such token>", 1, "not one token"),
    ("root ::= !a", 1, "'<'"),
    ('root ::= root "a" | "b"', 1, "left recursion"),
    ('root ::= "x"\na ::= b\nb ::= a "c"', 2, "left recursion"),
    ('root ::= a root "x" | "y"\na ::= b\nb ::= "" | "z"', 1, "left recursion"),
    ('root ::= ("a"?)*', 1, "left recursion"),
    ('root ::= "a"**', 1, "left recursion"),
    ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, 1, "nested"),
    ("root ::= " + " ".join(['"%s"{2000}' % ("a" * 50)] * 20), 1, "too large"),
    ("root ::= " + '"a" ' * 400_000, 1, "1 MiB"),
    (chain(40, 'r{0} ::= r{1} | r{1} "x"'), None, "too many ways"),
    (chain(20_000, "r{0} ::= r{1}"), None, "too many ways"),
]  # fmt: skip


@pytest.mark.parametrize(("grammar", "line", "why"), BAD, ids=range(len(BAD)))
def test_bad_grammars(
    model: Sardine, capfd: pytest.CaptureFixture[str], grammar: str, line: int | None, why: str
) -> None:
    """ValueError with the line, before anything is evaluated, and nothing on standard error."""
    model.reset()
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        model.generate(PROMPT, grammar=grammar, max_tokens=1)
    if why != "empty" or grammar:
        assert line is None or f"line {line}:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.n_tokens == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", [n for n in vars(llama_grammar) if n.endswith("_GBNF")])
def test_published_grammars(model: Sardine, name: str) -> None:
    """llama.cpp's examples are taken."""
    text, _ = write(model, getattr(llama_grammar, name), max_tokens=30)
    assert text


PIECES = st.sampled_from(
    ['"a"', '"', "[a-z]", "[", "]", "^", "(", ")", "|", "*", "+", "?", "{2}", "{1,3}", "{,", "}", "x", "root",
     "::=", "\n", " ", "#", ".", "<", "[1]", ">", "!", "\\", "\\x4", '""', "x ::= ", "root ::= ", "-"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=14))
def test_any_text_as_grammar(tiny_sampler: Any, pieces: list[str]) -> None:
    """Refused with a ValueError, or usable; libllama's own parser agrees where ours accepts."""
    tiny_sampler("root ::= " + "".join(pieces))


TERMINALS = ['"a"', '"bc"', "[a-z]", "[^a]", ".", '""', "x", "y", "root", "<[9]>"]
RULES = rules(TERMINALS, ["*", "+", "?", "{2}", "{0,3}", "{2,}", "{0}"])


@settings(max_examples=300, deadline=None)
@given(RULES, RULES, RULES)
def test_any_rules(tiny_sampler: Any, root: str, x: str, y: str) -> None:
    """The same with text that has the form of a grammar, so that recursion is what decides."""
    tiny_sampler(f"root ::= {root}\nx ::= {x}\ny ::= {y}")


@pytest.fixture(scope="module")
def tiny_sampler(model: Sardine) -> Any:
    def run(grammar: str) -> None:
        rng = np.random.default_rng(0)  # the same for every grammar, however often one is tried
        try:
            sampler = model.sampling.override(grammar=grammar).sampler(model.model, 64)
        except ValueError as e:
            if "libllama refuses" in str(e):
                raise
            return
        for _ in range(5):
            try:
                token = sampler.sample_logits(rng.standard_normal(model.n_vocab).astype(np.float32))
            except GrammarTooComplex:  # rules that multiply, found on the way
                return
            except SardineError as e:
                if "by the grammar" not in str(e):
                    raise
                return
            if token == model.token_eos():
                return

    return run


def test_token_elements_match_whole_tokens(model: Sardine) -> None:
    """libllama lets a <token> element match inside of a token and then does not accept it."""
    ids = {t: model.detokenize([t]) for t in range(model.n_vocab)}
    two = next(t for t, text in ids.items() if re.fullmatch("[a-z]{2}", text))
    one = next(t for t, text in ids.items() if re.fullmatch("[a-z]", text))
    sampler = model.sampling.override(grammar=f"root ::= [a-z] !<[{one}]>", temperature=0).sampler(
        model.model, 64
    )
    logits = np.zeros(model.n_vocab, np.float32)
    logits[two], logits[one] = 100, 50
    assert sampler.sample_logits(logits) == one
    assert sampler.sample_logits(logits) == two
    assert sampler.sample_logits(logits) == model.token_eos()


def test_grammar_without_tokenizer() -> None:
    from sardine_gguf import SamplingOptions

    with pytest.raises(ValueError, match="needs a model"):
        SamplingOptions(grammar='root ::= "a"').sampler(4, 64)


def test_grammar_file_object(model: Sardine) -> None:
    """llama_cpp's LlamaGrammar is taken as it is."""
    grammar = llama_grammar.LlamaGrammar.from_string('root ::= "ab"', verbose=False)
    assert write(model, grammar) == ("ab", "stop")  # type: ignore[arg-type]


# ---- JSON ----

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"team_name": {"type": "string"}},
        "required": ["team_name"],
    },
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    {"enum": ["red", 3, None, {"a": [1]}]},
    {"const": "é\"\\\n"},
    {"enum": ["a\\nb", '"', "\t", "\x00"]},
    {"type": "string", "minLength": 3},
    {"type": "object", "properties": {'a"b\\': {"type": "null"}}, "required": ['a"b\\']},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    {"type": ["boolean", "null"]},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}], "minItems": 2, "maxItems": 2},
    {
        "$defs": {
            "string": {"type": "boolean"},
            "Item[x]": {
                "type": "object",
                "properties": {"ok": {"$ref": "#/$defs/string"}},
                "required": ["ok"],
            },
        },
        "type": "object",
        "properties": {"string": {"$ref": "#/$defs/Item[x]"}, "root": {"const": 1}},
        "required": ["string", "root"],
        "additionalProperties": False,
    },
    {"type": "string", "format": "date"},
    {"type": "string", "pattern": "^(a?b?)*[^\\s\"]{0,3}$"},
    {"type": "number", "minimum": -0.75, "exclusiveMaximum": 12.5},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2000},
    {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"enum": [1, 2]}},
    {
        "type": "object",
        "title": "Tree",
        "description": "of one child",
        "properties": {"value": {"type": "boolean"}, "child": {"$ref": "#/definitions/leaf"}},
        "definitions": {"leaf": {"type": "object", "properties": {"n": {"const": 0}}, "required": ["n"]}},
    },
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_schemas(model: Sardine, schema: dict[str, Any]) -> None:
    """Whole answers parse and are valid by the package jsonschema."""
    before = json.dumps(schema)
    grammar = schema_grammar(schema)
    assert json.dumps(schema) == before
    whole = 0
    for seed in range(40):
        if whole == 3:
            break
        text, why = write(model, grammar, seed)
        if why == "stop":
            jsonschema.validate(json.loads(text), schema)
            whole += 1
    assert whole >= 1


def test_response_formats(model: Sardine) -> None:
    """The three types, with OpenAI's and llama-cpp-python's places for the schema."""
    assert response_grammar(None) is None
    assert response_grammar({"type": "text"}) is None
    assert response_grammar({"type": "json_object"}) == object_grammar()
    schema = SCHEMAS[0]
    expected = schema_grammar(schema)
    for form in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "schema": schema},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
    ):
        assert response_grammar(form) == expected
    for bad in (
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "text", "schema": {}},
        {"type": "json_object", "shema": {}},
    ):
        with pytest.raises(ValueError, match="response_format"):
            response_grammar(bad)
    with pytest.raises(TypeError):
        response_grammar("json_object")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both"):
        model("a", grammar='root ::= "a"', response_format={"type": "json_object"})
    answer = model(PROMPT, response_format={"type": "json_schema", "schema": {"const": [1]}})
    assert json.loads(answer["choices"][0]["text"]) == [1]


def test_long_grammar_is_quick(model: Sardine, tmp_path: Path) -> None:
    """A schema of 300 properties is read and followed."""
    schema = {
        "type": "object",
        "properties": {f"p{i}": {"type": "boolean"} for i in range(300)},
        "required": [f"p{i}" for i in range(300)],
    }
    text, _ = write(model, schema_grammar(schema), max_tokens=20)
    assert text.startswith("{")
