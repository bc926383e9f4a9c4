"""Our matcher of grammars: llama.cpp's own is the reference; and what llama.cpp's would hang or end on."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
import pytest
from grammar_texts import rules
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_grammar
from models import EXAMPLE, TinyModel, cancelling, random_tokens, text_of
from sardine_gguf import Cancelled, GrammarTooComplex, Sardine, _native
from sardine_gguf.convert import convert

PROMPT = random_tokens(8, seed=2)


class Reference:
    """llama.cpp's grammar sampler on the same vocabulary."""

    def __init__(self, path: str) -> None:
        p = llama_cpp.llama_model_default_params()
        p.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), p)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def start(self, grammar: str) -> Any:
        return llama_cpp.llama_sampler_init_grammar(self.vocab, grammar.encode(), b"root")

    def allowed(self, sampler: Any) -> set[int]:
        data = (llama_cpp.llama_token_data * self.n_vocab)()
        for i in range(self.n_vocab):
            data[i].id = i
        array = llama_cpp.llama_token_data_array(data, self.n_vocab, -1, False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        return {d.id for d in data if d.logit == 0}


@pytest.fixture(scope="module")
def tekken(workshop: Any) -> Iterator[tuple[Sardine, Reference]]:
    path = workshop / "tekken.gguf"
    if not path.exists():
        convert(EXAMPLE / "base", EXAMPLE / "srde_weights.pt", path, n_threads=2)
    with Sardine(path, n_ctx=64, n_threads=1) as m:
        yield m, Reference(str(path))


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8, or the beginning of it."""
    ends = (end * n for n in range(4) for end in (b"\x80", b"\xbf"))
    return any((data + e).decode(errors="replace").encode() == data + e for e in ends)


GRAMMARS = {
    **{n: getattr(llama_grammar, n) for n in vars(llama_grammar) if n.endswith("_GBNF")},
    "unicode": 'root ::= ([à-ÿ] | [^\\x00-\\x7f] | "日" | . "!")+ "é"?',
    "ambiguous": 'root ::= ("a" | "ab" | [a-c] "b"?)* "." [^a]{2,5}',
    "tokens": 'root ::= (<[40]> !<[41]>)* ("." <[300]> | !<[42]>)',
    "limits": 'root ::= ([a-z]{0,3} [ ,.]{1,2}){2,6} "x"{3} [0-9]{2,}',
    "nested": 'root ::= "(" root ")" | "[" (root ("," root)*)? "]" | [a-z ]*',
    "ends": 'root ::= "" | "t"? "h"? "e"?',
    "escapes": 'root ::= ["\\\\a\\]\\-\\n\\u00e9-\\U0001F600]+ | "\\x41\\t"',
}


def compare(m: Sardine, reference: Reference, grammar: str, seed: int, steps: int) -> None:
    """Walks a random text, and compares what is allowed at each of its tokens."""
    theirs = reference.start(grammar)
    assert theirs
    names_tokens = "<[" in grammar
    control = {t for t in range(m.n_vocab) if m.model.is_control(t) and not m.model.is_end(t)}
    g = np.random.default_rng(seed)
    ours = _native.Sampler(m.model, temperature=0.0, grammar=grammar)
    text: list[int] = []
    for _ in range(steps):
        expected = reference.allowed(theirs)
        if not names_tokens:
            expected -= control
        # libllama goes on with bytes that are no UTF-8 in some cases, which would become U+FFFD.
        so_far = m.detokenize_bytes(text)
        expected = {t for t in expected if names_tokens or is_text(so_far + m.model.piece(t))}
        found = set()
        for t in range(m.n_vocab):
            if ours.allows(t):
                found.add(t)
        if names_tokens:  # libllama takes no token of a part of a character for a token element
            found -= {t for t in found - expected if "\ufffd" in m.detokenize([t])}
        assert found == expected, (text, sorted(found ^ expected)[:20])
        going_on = sorted(t for t in expected if not m.model.is_end(t))
        if not going_on:
            break
        token = int(g.choice(going_on))
        logits = np.full(m.n_vocab, -50, np.float32)
        logits[token] = 50
        assert ours.sample_logits(logits) == token
        llama_cpp.llama_sampler_accept(theirs, token)
        text.append(token)
    llama_cpp.llama_sampler_free(theirs)


@pytest.mark.parametrize("name", GRAMMARS)
def test_same_tokens_as_llama_cpp(tekken: tuple[Sardine, Reference], name: str) -> None:
    for seed in range(3):
        compare(*tekken, GRAMMARS[name], seed, steps=12)


TERMINALS = ['"t"', '"he"', "[a-z]", "[^a]", ".", '""', "x", "y", "[ é]", '" "']
RULES = rules(TERMINALS, ["*", "+", "?", "{2}", "{0,3}", "{2,}", "{0}", "{1,2}"])


@settings(max_examples=60, deadline=None)
@given(RULES, RULES, st.integers(0, 100))
def test_any_grammar_as_llama_cpp(
    tekken: tuple[Sardine, Reference], root: str, x: str, seed: int
) -> None:
    grammar = f'root ::= {root} "!"\nx ::= "t" y | {x}\ny ::= "h" x | "e"'
    try:
        _native.Sampler(tekken[0].model, temperature=0.0, grammar=grammar)
    except ValueError:
        return
    with contextlib.suppress(GrammarTooComplex):  # rules that multiply, found on the way
        compare(*tekken, grammar, seed, steps=4)


LEADS = [0x7F, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4]


@pytest.mark.parametrize("lead", LEADS)
def test_text_stays_utf8(tekken: tuple[Sardine, Reference], lead: int) -> None:
    """By tokens of one byte each: no long forms, surrogates or more than Unicode has."""
    m = tekken[0]
    pieces = {t: m.model.piece(t) for t in range(m.n_vocab) if not m.model.is_control(t)}
    tokens = {p[0]: t for t, p in pieces.items() if len(p) == 1}
    assert len(tokens) == 256
    for later in (0x80, 0x90, 0xBF):
        sampler = _native.Sampler(m.model, temperature=0.0, grammar="root ::= .+")
        text = b""
        for byte in (lead, later, later, later):
            allowed = {b for b in range(1, 256) if sampler.allows(tokens[b])}
            assert allowed == {b for b in range(1, 256) if is_text(text + bytes([b]))}, text
            if byte not in allowed:
                break
            text += bytes([byte])
            logits = np.full(m.n_vocab, -50, np.float32)
            logits[tokens[byte]] = 50
            assert sampler.sample_logits(logits) == tokens[byte]


QUANTIFIERS = ["{2}", "{2,}", "{2,4}", "{0,2}", "{0}", "{0,0}", "{ 2 , 3 }", "{2 }", "*", "+", "?", "{1999}",
               "{0,1999}", "{1999,}", "{2}{2}", "{2,3}?", "+{2}"]  # fmt: skip


@pytest.mark.parametrize("quantifier", QUANTIFIERS)
def test_quantifiers_count_as_in_llama_cpp(
    tekken: tuple[Sardine, Reference], quantifier: str
) -> None:
    """How often "a" may stand, by both, up to 8 times."""
    m, reference = tekken
    (a,) = m.tokenize("a", add_bos=False)
    grammar = f'root ::= "b"? "a"{quantifier}'
    theirs, ours = reference.start(grammar), _native.Sampler(m.model, grammar=grammar)
    assert theirs
    logits = np.full(m.n_vocab, -50, np.float32)
    logits[a] = 50
    for _ in range(8):
        allowed = reference.allowed(theirs)
        for token in (a, m.token_eos()):
            assert ours.allows(token) == (token in allowed)
        if a not in allowed:
            break
        assert ours.sample_logits(logits) == a
        llama_cpp.llama_sampler_accept(theirs, a)


@pytest.mark.parametrize(
    "quantifier", ["{0,2001}", "{5,3000}", "{2001,}", "{2001}", "{0,9999999999999}"]
)
def test_limits_beyond_llama_cpps_are_refused(model: Sardine, quantifier: str) -> None:
    """libllama takes an upper limit beyond 2000 for none."""
    with pytest.raises(ValueError, match="more than 2000"):
        model.start(PROMPT, grammar=f"root ::= [a]{quantifier}")


@pytest.fixture(scope="module")
def model(tiny: TinyModel) -> Iterator[Sardine]:
    with tiny.open(n_ctx=2048) as m:
        yield m


# 2^n stacks after n letters.
DOUBLING = 'root ::= "a" root "b" | "a" root "c" | [a-d]'


def test_stacks_that_multiply(model: Sardine) -> None:
    """An error in bounded memory, and the context goes on."""
    (a,) = model.tokenize("a", add_bos=False)[-1:]
    code = model.start(PROMPT, grammar=DOUBLING, logit_bias={a: 100.0}, max_tokens=100)
    with pytest.raises(GrammarTooComplex, match="many ways"):
        list(code)
    assert text_of(model, PROMPT, grammar='root ::= "ab"') == "ab"


def test_memory_is_bounded(tiny: TinyModel) -> None:
    """Of a process that meets such a grammar."""
    code = f"""
import resource, sys
from sardine_gguf import GrammarTooComplex, Sardine
m = Sardine(sys.argv[1], n_threads=1)
a = m.tokenize("a", add_bos=False)[-1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    m.generate("a", grammar={DOUBLING!r}, logit_bias={{a: 100.0}}, max_tokens=200)
except GrammarTooComplex:
    print("refused")
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 << 10
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny.gguf)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "refused" in done.stdout


def test_cancel(model: Sardine) -> None:
    """While the grammar is at work; nothing is accepted, and the context goes on."""
    (a,) = model.tokenize("a", add_bos=False)[-1:]
    model.eval(PROMPT)
    options = {"grammar": DOUBLING, "temperature": 0.0, "logit_bias": [(a, 100.0)]}

    def draw_many(times: int) -> None:
        for _ in range(times):
            sampler = _native.Sampler(model.model, **options)
            for _ in range(16):
                sampler.sample(model.session)

    draw_many(1)
    with cancelling(model), pytest.raises(Cancelled):
        draw_many(100)
    assert text_of(model, PROMPT, grammar='root ::= "ab"') == "ab"
