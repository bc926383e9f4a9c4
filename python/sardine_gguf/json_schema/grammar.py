"""GBNF of the JSON texts that a schema describes."""

from __future__ import annotations

from typing import Any

from sardine_gguf.json_schema.disjoint import check_exclusive
from sardine_gguf.json_schema.document import Document, Node, SchemaError
from sardine_gguf.json_schema.expressions import (
    EMPTY,
    MAX_REPETITIONS,
    NEVER,
    Alt,
    Expr,
    Printer,
    Ref,
    Seq,
    alt,
    optional,
    productive,
    rep,
    seq,
)
from sardine_gguf.json_schema.facts import Facts
from sardine_gguf.json_schema.formats import FORMATS
from sardine_gguf.json_schema.json_text import CHAR, VALUE, WS, encoded, json_rules, key_but
from sardine_gguf.json_schema.numbers import (
    MAX_BOUND,
    integer_between,
    integer_lower,
    integer_upper,
    lower,
    number_between,
    upper,
)
from sardine_gguf.json_schema.pattern import Unsupported, pattern_expression
from sardine_gguf.json_schema.values import checked_values

_MAX_RULES = 50_000


def object_grammar() -> str:
    """GBNF of any JSON object."""
    return Printer().print(productive({"root": Ref("object"), **json_rules()}, "root"))


def schema_grammar(schema: Any) -> str:
    """GBNF of JSON texts that are valid by a schema; see docs/python.md for the keywords.

    Every text of the grammar is valid; of the valid texts some are left out: properties come in the order of
    the schema, properties and items that it does not name come only where it says so, and numbers have 16
    digits at most.

    Raises:
        ValueError: the schema is malformed, no value is valid by it, or it has something that a grammar
            cannot hold to; the message names the keyword, its place as a JSON pointer, and a remedy.
    """
    try:
        return _Converter(Document(schema)).convert()
    except RecursionError:
        raise ValueError("JSON schema: it is nested too deep") from None
    except ValueError as e:
        raise ValueError(f"JSON schema: {e}") from None


class _Converter:
    def __init__(self, doc: Document) -> None:
        self._doc = doc
        self._rules: dict[str, Expr] = {}
        self._names: dict[Node, str] = {}
        self._waiting: list[Node] = []

    def convert(self) -> str:
        self._doc.check_root()
        self._rules["root"] = self._node(("#",))
        while self._waiting:
            node = self._waiting.pop()
            cases = self._doc.cases(node)
            self._rules[self._names[node]] = alt(*(self._case(c) for c in cases))
        rules = productive({**self._rules, **json_rules()}, "root")
        if not rules:
            raise SchemaError(
                "no value is valid by it, or none that ends: look for limits that contradict each other, "
                "and for required properties that refer to the schema they are in"
            )
        return Printer().print(rules)

    def _node(self, node: Node) -> Expr:
        """The rule of a value that meets some schemas."""
        if not any(self._doc.at(p) is not True for p in node):
            return VALUE
        if node not in self._names:
            self._names[node] = self._new_name("value")
            self._waiting.append(node)
        return Ref(self._names[node])

    def _new_name(self, kind: str) -> str:
        if len(self._rules) + len(self._waiting) > _MAX_RULES:
            raise SchemaError(f"its grammar has more than {_MAX_RULES} rules: use a smaller schema")
        return f"{kind}-{len(self._rules)}-{len(self._names)}"

    def _rule(self, expr: Expr) -> Expr:
        """The expression by a name, if it is of several parts."""
        if not isinstance(expr, Seq | Alt) or expr == NEVER:
            return expr
        name = self._new_name("part")
        self._rules[name] = expr
        return Ref(name)

    def _case(self, case: Node) -> Expr:
        check_exclusive(self._doc, case)
        facts = Facts(self._doc, case)
        values = facts.values()
        if values is not None:
            valid = checked_values(self._doc, values, case)
            if not valid and len(case) == 1:
                raise SchemaError(f"no value of enum or const at {case[0]} is valid there")
            return alt(*(encoded(v) for v in valid))
        if not any(set(s) - {"$ref", "allOf", "anyOf", "oneOf"} for _, s in facts.schemas):
            return VALUE
        kinds = facts.kinds(inferred=True)
        out: list[Expr] = []
        if "object" in kinds:
            out.append(self._object(facts))
        if "array" in kinds:
            out.append(self._array(facts))
        if "string" in kinds:
            out.append(self._string(facts))
        if "integer" in kinds:
            out.append(self._number(facts, fractions="fraction" in kinds))
        out += ["true", "false"] if "boolean" in kinds else []  # type: ignore[list-item]
        out += ["null"] if "null" in kinds else []  # type: ignore[list-item]
        return alt(*out)

    def _object(self, facts: Facts) -> Expr:
        names = facts.names()
        extra: Expr = NEVER
        if facts.is_open():
            if not names and not facts.other_properties():
                extra = seq(Ref("string"), ":", WS, VALUE)
            else:
                key = key_but(names, self._rule)
                extra = seq('"', key, ":", WS, self._node(facts.other_properties()))
        self._check_count(facts, names, is_open=facts.is_open())
        extra = self._rule(extra)
        # From the last to the first: the members from here on, behind others, and the same as the first ones.
        later = rep(seq(",", WS, extra)) if extra != NEVER else EMPTY
        first = seq(extra, later)
        for name, required in reversed(names.items()):
            self._doc.spend()
            member = self._rule(seq(encoded(name), ":", WS, self._node(facts.property(name))))
            more, later = seq(",", WS, member), self._rule(later)
            first = self._rule(seq(member, later) if required else alt(seq(member, later), first))
            later = seq(more if required else optional(more), later)
        empty = [] if any(names.values()) else [seq("{", WS, "}")]
        return alt(*empty, seq("{", WS, first, WS, "}"))

    def _check_count(self, facts: Facts, names: dict[str, bool], *, is_open: bool) -> None:
        least, most = facts.span("minProperties", "maxProperties")
        place = facts.case[0]
        if least > sum(names.values()):
            raise SchemaError(
                f"keyword 'minProperties' at {place} is not supported beyond the required properties: list "
                "more of them in 'required'"
            )
        if most is not None and (is_open or most < len(names)):
            raise SchemaError(
                f"keyword 'maxProperties' at {place} is not supported below the number of properties: leave "
                "it out, or declare the properties"
            )

    def _array(self, facts: Facts) -> Expr:
        least, most = facts.items()
        if most is not None and most < least:
            return NEVER
        fixed = facts.fixed_items()
        if most is not None:
            fixed = min(fixed, most)
        empty = [] if least else [seq("[", WS, "]")]
        if most == 0:
            return alt(*empty)
        place = next((p for p, s in facts.schemas if {"minItems", "maxItems"} & set(s)), "")
        self._check_repetition(least, most, "minItems and maxItems", place)
        rest = self._node(facts.item(fixed))
        more = seq(",", WS, rest)
        if fixed == 0:
            body = seq(rest, rep(more, max(0, least - 1), None if most is None else most - 1))
        else:
            body = rep(more, max(0, least - fixed), None if most is None else most - fixed)
            for i in reversed(range(fixed)):
                body = self._rule(
                    seq("," if i else "", WS if i else "", self._node(facts.item(i)), body)
                )
                body = optional(body) if i > 0 and i >= least else body
        return alt(*empty, seq("[", WS, body, WS, "]"))

    def _check_repetition(self, least: int, most: int | None, keys: str, place: str) -> None:
        if max(least, most or 0) > MAX_REPETITIONS:
            raise SchemaError(
                f"{keys} at {place} come to {max(least, most or 0)}, and libllama repeats nothing more than "
                f"{MAX_REPETITIONS} times: lower them, or leave them out"
            )

    def _string(self, facts: Facts) -> Expr:
        least, most = facts.span("minLength", "maxLength")
        patterns = {s["pattern"]: p for p, s in facts.schemas if "pattern" in s}
        if most is not None and most < least:
            return NEVER
        if patterns:
            return self._pattern(patterns, least, most)
        for _, s in facts.schemas:
            form = FORMATS.get(str(s.get("format")))
            if form and least <= form[1] and (most is None or form[2] <= most):
                name = s["format"] + "-text"
                self._rules[name] = form[0]
                return seq('"', Ref(name), '"')
        place = next((p for p, s in facts.schemas if {"minLength", "maxLength"} & set(s)), "")
        self._check_repetition(least, most, "minLength and maxLength", place)
        return seq('"', rep(CHAR, least, most), '"')

    def _pattern(self, patterns: dict[str, str], least: int, most: int | None) -> Expr:
        (text, place), *others = patterns.items()
        if others:
            raise SchemaError(
                f"the patterns at {place} and {others[0][1]} are for one string: make them one pattern"
            )
        try:
            expr, shortest, longest = pattern_expression(text)
        except Unsupported as e:
            raise SchemaError(
                f"keyword 'pattern' at {place}: {e}: write it with classes, groups, | and repetitions"
            ) from None
        if least > shortest or (most is not None and (longest is None or longest > most)):
            raise SchemaError(
                f"minLength or maxLength stands beside the pattern at {place}, whose texts have other "
                "lengths: write the length into the pattern, such as ^[a-z]{1,9}$"
            )
        return seq('"', self._rule(expr), '"')

    def _number(self, facts: Facts, *, fractions: bool) -> Expr:
        lows, highs = list(facts.lower_bounds()), list(facts.upper_bounds())
        for bound in (*lows, *highs):
            if abs(bound.value) > MAX_BOUND:
                raise SchemaError(
                    f"a limit of numbers at {facts.case[0]} is beyond 1e300: lower it"
                )
        if not fractions:
            return integer_between(
                max((integer_lower(b.value, exclusive=b.exclusive) for b in lows), default=None),
                min((integer_upper(b.value, exclusive=b.exclusive) for b in highs), default=None),
            )
        if not lows and not highs:
            return Ref("number")
        return number_between(
            max((lower(b.value, exclusive=b.exclusive) for b in lows), default=None),
            min((upper(b.value, exclusive=b.exclusive) for b in highs), default=None),
        )
