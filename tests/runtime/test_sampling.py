"""Samplers on small distributions made by hand, against plain statements of what each of them does."""

from __future__ import annotations

import ctypes
from dataclasses import fields
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf_mutate import Gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from models import VOCAB, TinyModel, random_tokens, text_of
from numpy.typing import NDArray
from sardine_gguf import FormatError, SamplingOptions, Sardine
from sardine_gguf.sampler_order import DEFAULT_ORDER, sampler_order
from sardine_gguf.sampling import SAMPLING_NAMES

Array = NDArray[np.float64]
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
P = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
LOGITS = np.log(P).astype(np.float32)


def frequencies(n: int = 4000, logits: NDArray[np.float32] = LOGITS, **options: Any) -> Array:
    """Shares of n tokens drawn with one seed, each as the first of a text."""
    seed = options.pop("seed", 1)
    sampler = SamplingOptions(**{**OFF, **options}, seed=seed).sampler(len(logits), 64)
    drawn = [sampler.sample_logits(logits) for _ in range(n)]
    return np.bincount(drawn, minlength=len(logits)) / n


def check(found: Array, expected: Array, n: int = 4000) -> None:
    """Within 5 standard deviations; what cannot be drawn is never drawn."""
    expected = np.asarray(expected, np.float64) / np.sum(expected)
    assert (abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / n) + 1e-12).all()
    assert (found[expected == 0] == 0).all()


def test_no_option() -> None:
    check(frequencies(), P)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 2.0, 10.0])
def test_temperature(temperature: float) -> None:
    check(frequencies(temperature=temperature), P ** (1 / temperature))


def test_greedy() -> None:
    assert frequencies(temperature=0.0)[1] == 1
    assert frequencies(temperature=1e-6)[1] == 1


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (9, range(5)), (-1, range(5))]
)
def test_top_k(k: int, kept: list[int]) -> None:
    check(frequencies(top_k=k), np.where(np.isin(np.arange(5), kept), P, 0))


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.0, [1]),
        (0.39, [1]),
        (0.6, [1, 3]),
        (0.8, [1, 2, 3]),
        (0.9, [1, 2, 3, 4]),
        (1.0, range(5)),
    ],
)
def test_top_p(p: float, kept: list[int]) -> None:
    check(frequencies(top_p=p), np.where(np.isin(np.arange(5), kept), P, 0))


@pytest.mark.parametrize(("p", "kept"), [(0.3, [1, 2, 3]), (0.76, [1]), (0.2, [1, 2, 3, 4])])
def test_min_p(p: float, kept: list[int]) -> None:
    check(frequencies(min_p=p), np.where(np.isin(np.arange(5), kept), P, 0))


def typical(p: Array, mass: float) -> Array:
    """As the paper has it: nearest to the entropy first, until the mass is passed."""
    surprise = -np.log(p)
    order = np.argsort(abs(surprise - (p * surprise).sum()), kind="stable")
    n = int(np.searchsorted(np.cumsum(p[order]), mass, side="right")) + 1
    out = np.zeros_like(p)
    out[order[:n]] = p[order[:n]]
    return out


@pytest.mark.parametrize("mass", [0.05, 0.2, 0.5, 0.8, 0.99])
def test_typical(mass: float) -> None:
    check(frequencies(typical_p=mass), typical(P, mass))


def test_typical_of_impossible_tokens() -> None:
    """Logits so low that their probability is 0 in float32 do not spoil the entropy."""
    logits = np.array([*LOGITS, -300.0, -1e30], np.float32)
    check(frequencies(logits=logits, typical_p=0.5), [*typical(P, 0.5), 0, 0])


def test_xtc() -> None:
    """With its probability, all tokens above the threshold go but the least of them."""
    check(frequencies(xtc_probability=1.0, xtc_threshold=0.12), [0.05, 0, 0.15, 0, 0.1])
    assert 0.05 < frequencies(xtc_probability=0.5, xtc_threshold=0.12)[1] < 0.35


def after(seen: list[int], **options: Any) -> int:
    """The greedy choice after a prompt."""
    s = SamplingOptions(**{**OFF, "temperature": 0.0, **options}).sampler(4, 64)
    s.accept_prompt(seen)
    return s.sample_logits(np.array([1.0, 0.9, 0.5, -0.2], np.float32))


def test_penalties() -> None:
    """Each by its formula, over the last tokens of the prompt, and of what was drawn."""
    assert after([0]) == 0
    assert after([0], repeat_penalty=1.05) == 0  # 0.952
    assert after([0], repeat_penalty=1.2) == 1  # 0.833
    assert after([0, 1], repeat_penalty=2.5) == 2  # 0.4, 0.36
    assert after([0, 1, 2], repeat_penalty=2.5) == 0  # 0.4, 0.36, 0.2
    assert after([0], presence_penalty=0.05) == 0
    assert after([0], presence_penalty=0.15) == 1
    assert after([0] * 2, presence_penalty=0.05) == 0
    assert after([0] * 2, frequency_penalty=0.05) == 0  # as it, a tie is the lower id's
    assert after([0] * 3, frequency_penalty=0.05) == 1
    assert after([0, 1, 2, 3], repeat_penalty=3.0) == 0  # -0.2 becomes -0.6
    assert after([0] + [3] * 64, presence_penalty=5.0) == 0
    assert after([0] + [3] * 63, presence_penalty=5.0) == 1
    assert after([0] + [3] * 2, presence_penalty=5.0, repeat_last_n=2) == 0
    assert after([0] + [3] * 2, presence_penalty=5.0, repeat_last_n=3) == 1
    assert after([0] + [3] * 63, presence_penalty=5.0, repeat_last_n=-1) == 1
    assert after([0] + [3] * 64, presence_penalty=5.0, repeat_last_n=-1) == 0
    assert after([0], presence_penalty=5.0, repeat_last_n=0) == 0
    s = SamplingOptions(temperature=0.0, presence_penalty=5.0).sampler(4, 64)
    logits = np.array([1.0, 0.9, 0.5, -0.2], np.float32)
    assert [s.sample_logits(logits) for _ in range(5)] == [0, 1, 2, 3, 0]


def test_logit_bias() -> None:
    bias = {1: -np.inf, 0: 1.0, 4: -2.0}
    check(frequencies(logit_bias=bias), P * np.exp([1, -np.inf, 0, 0, -2]))
    assert frequencies(logit_bias={0: 100.0}, n=50)[0] == 1
    with pytest.raises(Exception, match="leaves no token"):
        frequencies(logit_bias=dict.fromkeys(range(5), -np.inf))
    for bad, why in (
        ({5: 1.0}, "5"),
        ({-1: 1.0}, "-1"),
        ({0: np.nan}, "finite"),
        ({0: np.inf}, "finite"),
    ):
        with pytest.raises(ValueError, match=why):
            frequencies(logit_bias=bad)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_mirostat(mode: int, tau: float) -> None:
    """The mean surprise of the tokens approaches the target, whatever the distribution."""
    rng = np.random.default_rng(3)
    sampler = SamplingOptions(
        **OFF, mirostat_mode=mode, mirostat_tau=tau, mirostat_eta=0.1, seed=7
    ).sampler(500, 64)
    surprise = []
    for _ in range(1500):
        logits = (2 * rng.standard_normal(500)).astype(np.float32)
        p = np.exp(logits - logits.max())
        surprise.append(-np.log2((p / p.sum())[sampler.sample_logits(logits)]))
    # Mirostat measures surprise among the kept tokens, so the mean lies above the target, by less than this.
    assert tau - 0.5 <= np.mean(surprise[300:]) <= tau + 2.5
    plain = frequencies(n=1, logits=logits, mirostat_mode=mode, mirostat_tau=0.0, mirostat_eta=5.0)
    assert plain.sum() == 1


def test_order_of_the_chain() -> None:
    """top_p looks at what top_k left; min_p and the temperature come after."""
    check(frequencies(top_k=2, top_p=0.55), [0, 1, 0, 0, 0])  # 0.4 / 0.7 is more than 0.55
    check(frequencies(top_p=0.55), [0, 0.4, 0, 0.3, 0])
    check(frequencies(temperature=50.0, min_p=0.7), np.where(P >= 0.28, P, 0) ** (1 / 50))


def libllama_chain(n_vocab: int, options: dict[str, Any]) -> Any:
    """The chain of llama.cpp's common/sampling, put together by llama_cpp's bindings."""
    o = {f.name: f.default for f in fields(SamplingOptions)} | options
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

    def add(name: str, *arguments: Any) -> None:
        init = getattr(llama_cpp, f"llama_sampler_init_{name}")
        llama_cpp.llama_sampler_chain_add(chain, init(*arguments))

    penalties = (
        n_vocab, o["repeat_last_n"], o["repeat_penalty"], o["frequency_penalty"], o["presence_penalty"],
    )  # fmt: skip
    if o["mirostat_mode"]:
        add("penalties", *penalties)
        add("temp", o["temperature"])
        if o["mirostat_mode"] == 1:
            add("mirostat", n_vocab, o["seed"], o["mirostat_tau"], o["mirostat_eta"], 100)
        else:
            add("mirostat_v2", o["seed"], o["mirostat_tau"], o["mirostat_eta"])
        return chain
    arguments: dict[str, tuple[str, tuple[Any, ...]]] = {
        "penalties": ("penalties", penalties),
        "top_k": ("top_k", (o["top_k"],)),
        "typ_p": ("typical", (o["typical_p"], 1)),
        "top_p": ("top_p", (o["top_p"], 1)),
        "min_p": ("min_p", (o["min_p"], 1)),
        "xtc": ("xtc", (o["xtc_probability"], o["xtc_threshold"], 1, o["seed"])),
        "temperature": ("temp", (o["temperature"],)),
    }
    for name in o["samplers"]:
        add(arguments[name][0], *arguments[name][1])
    add("dist", o["seed"])
    return chain


def libllama_sample(chain: Any, logits: NDArray[np.float32]) -> int:
    n = len(logits)
    data = (llama_cpp.llama_token_data * n)(*((i, float(x), 0.0) for i, x in enumerate(logits)))
    array = llama_cpp.llama_token_data_array(data=data, size=n, selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    token = int(array.data[array.selected].id)
    llama_cpp.llama_sampler_accept(chain, token)
    return token


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3, "top_k": 5},
    {"top_k": 0, "top_p": 0.5},
    {"typical_p": 0.5, "top_k": 0},
    {"min_p": 0.2, "temperature": 3.0},
    {"repeat_penalty": 1.3, "repeat_last_n": 10},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"xtc_probability": 0.5, "temperature": 2.0},
    {"mirostat_mode": 1, "mirostat_tau": 3.0},
    {"mirostat_mode": 2, "mirostat_tau": 3.0, "temperature": 1.5},
]


# In an order of their own, or without some; every option on.
EVERY: dict[str, Any] = {
    "temperature": 1.7, "top_k": 20, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.1, "xtc_probability": 0.5,
    "xtc_threshold": 0.05, "repeat_penalty": 1.5, "frequency_penalty": 0.3,
}  # fmt: skip
ORDERS = [
    (),
    ("temperature",),
    ("temperature", "min_p"),
    ("top_k", "top_k", "temperature", "temperature"),
    ("xtc", "min_p", "penalties", "top_k"),
    tuple(reversed(DEFAULT_ORDER)),
]


@pytest.mark.parametrize("options", [*OPTIONS, *({**EVERY, "samplers": o} for o in ORDERS)])
def test_equals_libllama(options: dict[str, Any]) -> None:
    """The same seed draws the same tokens as a chain that llama_cpp put together."""
    options = {**options, "seed": 42}
    ours = SamplingOptions(**options).sampler(60, 64)
    theirs = libllama_chain(60, options)
    prompt = [1, 2, 3, 3]
    if options.get("mirostat_mode"):
        prompt = []  # llama.cpp leaves penalties out then
    ours.accept_prompt(prompt)
    for token in prompt:
        llama_cpp.llama_sampler_accept(theirs, token)
    rng = np.random.default_rng(0)
    for _ in range(100):
        logits = (3 * rng.standard_normal(60)).astype(np.float32)
        assert ours.sample_logits(logits) == libllama_sample(theirs, logits)
    llama_cpp.llama_sampler_free(theirs)


def test_an_order_shows() -> None:
    """min_p before a high temperature drops what it keeps after it; what is not named does nothing."""
    options: dict[str, Any] = {"temperature": 50.0, "min_p": 0.7}
    check(frequencies(**options, samplers=["temperature", "min_p"]), P ** (1 / 50))
    check(frequencies(**options, samplers="min_p;temp"), np.where(P >= 0.28, P, 0) ** (1 / 50))
    check(frequencies(**options, samplers="min_p"), np.where(P >= 0.28, P, 0))
    check(frequencies(**options, samplers=[]), P)
    assert frequencies(temperature=0.0, samplers=[])[1] == 1
    assert after([0], presence_penalty=5.0) == 1
    assert after([0], presence_penalty=5.0, samplers=["temperature"]) == 0


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", DEFAULT_ORDER),
        ("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature", DEFAULT_ORDER),
        ("Top-K;topp;MINP;temp;typ;nucleus;", ("top_k", "top_p", "min_p", "temperature", "typ_p", "top_p")),
        ("dry", ()),
    ],
)  # fmt: skip
def test_spellings_of_an_order(text: str, order: tuple[str, ...]) -> None:
    """llama.cpp's names and its other spellings; samplers that nothing here turns on are off there too."""
    assert sampler_order(text) == order
    assert sampler_order(order) == order


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("top_k;infill", "'infill'.*not supported"),
        (["adaptive-p"], "not supported"),
        ("top_k;nonsense", "'nonsense'.*not known.*top_k"),
        (["top_k"] * 33, "33 names"),
    ],
)
def test_refused_orders(small: TinyModel, tmp_path: Any, names: Any, why: str) -> None:
    """A ValueError from a call, a FormatError from a file."""
    with pytest.raises(ValueError, match=why):
        SamplingOptions(samplers=names).sampler(4, 64)
    with small.open() as m, pytest.raises(ValueError, match=why):
        m.start([1, 2], samplers=names)
    text = names if isinstance(names, str) else ";".join(names)
    path = with_key(small.gguf, tmp_path / "m.gguf", "general.sampling.sequence", "str", text)
    with pytest.raises(FormatError, match=why) as caught:
        Sardine(path)
    assert caught.value.field == "general.sampling.sequence"


def test_order_of_the_file(small: TinyModel, tmp_path: Any) -> None:
    """general.sampling.sequence is the default; a call may name another."""
    key = "general.sampling.sequence"
    path = with_key(small.gguf, tmp_path / "m.gguf", key, "str", "temperature;min-p")
    options: dict[str, Any] = {"temperature": 3.0, "min_p": 0.1, "seed": 5, "max_tokens": 30}
    prompt = [1, 8, 9]

    def tokens(m: Sardine, **more: Any) -> list[int]:
        return list(m.generate_tokens(prompt, **options, **more))

    with Sardine(path) as m, Sardine(small.gguf) as plain:
        assert m.sampling == SamplingOptions(samplers=("temperature", "min_p"))
        assert tokens(m) == tokens(plain, samplers="temperature;min_p")
        assert tokens(m, samplers=DEFAULT_ORDER) == tokens(plain)
        assert tokens(m) != tokens(plain)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 100),
            "top_k": st.integers(-5, 50),
            "top_p": st.floats(0, 1),
            "min_p": st.floats(0, 1),
            "typical_p": st.floats(0, 1),
            "xtc_probability": st.floats(0, 1),
            "xtc_threshold": st.floats(0, 1),
            "repeat_penalty": st.floats(0.01, 100),
            "presence_penalty": st.floats(-100, 100),
            "frequency_penalty": st.floats(-100, 100),
            "repeat_last_n": st.integers(-1, 100),
            "mirostat_mode": st.integers(0, 2),
            "mirostat_tau": st.floats(0, 100),
            "mirostat_eta": st.floats(0, 100),
            "samplers": st.lists(st.sampled_from(DEFAULT_ORDER), max_size=10),
            "logit_bias": st.dictionaries(
                st.integers(0, 11), st.floats(-100, 100) | st.just(-np.inf), max_size=11
            ),
        },
    ),
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-5, 5, width=32),
        min_size=12,
        max_size=12,
    ),
)  # fmt: skip
def test_any_options(options: dict[str, Any], logits: list[float]) -> None:
    """Every option in its range draws a token that may be drawn, for any finite logits."""
    sampler = SamplingOptions(**options, seed=1).sampler(12, 64)
    sampler.accept_prompt([0, 1, 1])
    for _ in range(4):
        token = sampler.sample_logits(np.array(logits, np.float32))
        assert 0 <= token < 12
        assert options.get("logit_bias", {}).get(token) != -np.inf


@pytest.mark.parametrize(
    "name", sorted(SAMPLING_NAMES - {"grammar", "logit_bias", "samplers", "top_k"})
)
def test_ranges(name: str) -> None:
    """ValueError that names the option, for numbers beyond its range or that are none."""
    whole = name in ("repeat_last_n", "mirostat_mode", "seed")
    for value in (2**32, -200) if whole else (-1000.0, 1000.0, np.nan, np.inf, -np.inf):
        if name == "seed" and value < 0:
            continue
        with pytest.raises((ValueError, TypeError, OverflowError)):
            SamplingOptions(**{name: value}).sampler(4, 64)


def test_not_finite_logits() -> None:
    sampler = SamplingOptions().sampler(3, 64)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(Exception, match="finite"):
            sampler.sample_logits(np.array([1, bad, 2], np.float32))
    with pytest.raises(ValueError, match="expected 3"):
        sampler.sample_logits(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="no logits"):
        sampler.sample_logits(np.zeros(0, np.float32))


def test_random_seeds() -> None:
    """Negative seeds and llama.cpp's name for a random one differ from call to call."""
    for seed in (-1, -5, 2**32 - 1):
        texts = {tuple(first_tokens(seed)) for _ in range(5)}
        assert len(texts) > 1
    assert first_tokens(3) == first_tokens(3)


def first_tokens(seed: int) -> list[int]:
    s = SamplingOptions(**OFF, seed=seed).sampler(5, 64)
    return [s.sample_logits(LOGITS) for _ in range(30)]


# ---- through a model ----


def with_key(path: Any, out: Any, key: str, kind: str, value: float | str) -> Any:
    g = Gguf.parse(path.read_bytes())
    g.set(key, kind, value)
    out.write_bytes(g.build())
    return out


FILE_KEYS: list[tuple[str, str, float, str]] = [
    ("temp", "f32", 0.25, "temperature"),
    ("top_k", "i32", 7, "top_k"),
    ("top_p", "f32", 0.5, "top_p"),
    ("min_p", "f32", 0.125, "min_p"),
    ("xtc_probability", "f32", 0.5, "xtc_probability"),
    ("xtc_threshold", "f32", 0.25, "xtc_threshold"),
    ("penalty_last_n", "i32", 32, "repeat_last_n"),
    ("penalty_repeat", "f32", 1.5, "repeat_penalty"),
    ("mirostat", "i32", 2, "mirostat_mode"),
    ("mirostat_tau", "f32", 3.0, "mirostat_tau"),
    ("mirostat_eta", "f32", 0.5, "mirostat_eta"),
]


@pytest.mark.parametrize(("key", "kind", "value", "name"), FILE_KEYS)
def test_defaults_of_the_file(
    small: TinyModel, tmp_path: Any, key: str, kind: str, value: float, name: str
) -> None:
    """general.sampling.* are the defaults, arguments go before them, bad ones are a FormatError."""
    field = f"general.sampling.{key}"
    path = with_key(small.gguf, tmp_path / "m.gguf", field, kind, value)
    with Sardine(path) as m:
        assert getattr(m.sampling, name) == value
        assert m.sampling == SamplingOptions(**{name: value})  # type: ignore[arg-type]
    for other, wrong in (("f32", 1e30), ("str", "7"), ("bool", True)):
        bad = with_key(small.gguf, tmp_path / "bad.gguf", field, other, wrong)
        with pytest.raises(FormatError, match=r"expected|no sampler") as caught:
            Sardine(bad)
        assert caught.value.field == field


def test_options_reach_the_sampler(tiny: TinyModel) -> None:
    """Every option changes what is drawn, so none is ignored."""
    prompt = random_tokens(12, seed=21)
    base: dict[str, Any] = {**OFF, "temperature": 1.5, "seed": 3, "max_tokens": 40}
    changes: list[dict[str, Any]] = [
        {"temperature": 0.2}, {"top_k": 2}, {"top_p": 0.1}, {"min_p": 0.9}, {"typical_p": 0.1},
        {"xtc_probability": 1.0, "xtc_threshold": 0.001}, {"repeat_penalty": 5.0},
        {"presence_penalty": 5.0}, {"frequency_penalty": 5.0}, {"mirostat_mode": 1, "mirostat_tau": 1.0},
        {"mirostat_mode": 2, "mirostat_tau": 1.0}, {"logit_bias": {"9": 100.0}}, {"seed": 4},
        {"grammar": 'root ::= [a-z]+'}, {"samplers": []},
    ]  # fmt: skip
    with tiny.open() as m:

        def tokens(**options: Any) -> list[int]:
            g = m.start(prompt, **options)
            list(g)
            return g.tokens

        plain = tokens(**base)
        assert plain == tokens(**base)
        for change in changes:
            assert tokens(**{**base, **change}) != plain, change
        long = {**base, "repeat_penalty": 3.0}
        assert tokens(**long, repeat_last_n=1) != tokens(**long, repeat_last_n=-1)
        v2 = {**base, "mirostat_mode": 2}
        taus = [tokens(**v2, mirostat_tau=t) for t in (0.1, 5.0)]
        etas = [tokens(**v2, mirostat_tau=0.5, mirostat_eta=e) for e in (0.01, 5.0)]
        assert taus[0] != taus[1]
        assert etas[0] != etas[1]
        assert tokens(**base, logit_bias={9: 100.0})[:3] == [9, 9, 9]


def test_sample_method(tiny: TinyModel) -> None:
    """sample() draws from the context's last logits, penalties over its tokens."""
    with tiny.open() as m:
        with pytest.raises(ValueError, match="evaluate"):
            m.sample()
        logits = m.eval(random_tokens(10))[-1]
        assert m.sample(temperature=0) == logits.argmax()
        assert m.sample(seed=4) == m.sample(seed=4)
        m.eval([int(logits.argmax())])
        assert m.sample(temperature=0, logit_bias={5: 1000.0}) == 5


def test_generate_tokens(tiny: TinyModel) -> None:
    """The ids behind generate's text."""
    with tiny.open() as m:
        options: dict[str, Any] = {"max_tokens": 20, "seed": 2}
        ids = list(m.generate_tokens(random_tokens(10), **options))
        assert m.detokenize(ids) == text_of(m, random_tokens(10), **options)
        assert 0 < len(ids) <= 20
        assert all(0 <= t < VOCAB for t in ids)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"temprature": 1}, TypeError, "did you mean temperature"),
        ({"tempe": 1}, TypeError, "did you mean temperature"),
        ({"tfs_z": 0.5}, ValueError, "tfs_z.*removed"),
        ({"logits_processor": [abs]}, ValueError, "logits_processor"),
        ({"grammar": 3}, TypeError, "GBNF"),
        ({"grammar": " "}, ValueError, "empty"),
        ({"logit_bias": {"x": 1}}, ValueError, "x"),
    ],
)
def test_refused_options(
    tiny: TinyModel, options: dict[str, Any], error: type[Exception], why: str
) -> None:
    with tiny.open() as m:
        with pytest.raises(error, match=why):
            m.generate("a", **options)
        assert m.n_tokens == 0
