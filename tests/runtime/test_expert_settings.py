"""Settings of experts as text and mappings, the router's op, and the figures of routes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sardine_gguf import _native
from sardine_gguf.expert_settings import ExpertSettings, parse_text
from sardine_gguf.routes import Routes, agreement, joined

NAMES = ["math", "logic", "code", "science"]


def weights(spec: Any) -> list[float]:
    """What is forced."""
    return list(ExpertSettings.parse(spec, NAMES).weights)


def bias(spec: Any) -> list[float]:
    """What is biased."""
    return list(ExpertSettings.parse(spec, NAMES).bias)


def test_what_settings_mean() -> None:
    """docs/experts.md, "Settings"."""
    assert weights({"math": 1.0}) == [1, 0, 0, 0]
    assert weights({"math": 3, 2: 1}) == [0.75, 0, 0.25, 0]
    assert weights({"math": 3, "*": "mute"}) == [1, 0, 0, 0]
    assert weights("code=1, 0=3") == [0.75, 0, 0.25, 0]
    assert weights({"*": 1}) == [0.25] * 4
    assert bias({"math": "mute"}) == bias({0: None}) == bias({"0": 0}) == [-math.inf, 0, 0, 0]
    assert bias("logic=+2 code=-0.5") == [0, 2, -0.5, 0]
    assert bias({"*": "mute", "code": "+0"}) == [-math.inf, -math.inf, 0, -math.inf]
    assert ExpertSettings.parse({"*": "+0"}, NAMES) == ExpertSettings()
    assert not ExpertSettings.parse(None, NAMES)
    assert ExpertSettings.parse("math=mute", NAMES).text(NAMES) == "math=mute"
    assert ExpertSettings.parse("math=2,code=1", NAMES).text(NAMES) == "math=0.667 code=0.333"


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"maht": 1}, "no expert 'maht': did you mean 'math'.*math, logic, code, science"),
        ({"MATH": 1}, "did you mean 'math'"),
        ({"zebra": 1}, "no expert 'zebra': The experts are math"),
        ({4: 1}, "no expert '4': they are numbered 0 to 3"),
        ({-1: 1}, "no expert '-1'"),
        ({"99999999999": 1}, "no expert '99999999999'"),
        ({"math": 1, 0: 2}, "'math' is set twice"),
        ("math=1,math=2", "'math' is set twice"),
        ({"math": 1, "code": "+1"}, "'code' has a bias while others are forced"),
        ({"math": -1}, "'math' is set to -1, expected a weight above 0"),
        ({"math": math.nan}, "set to nan"),
        ({"math": math.inf}, "set to inf"),
        ({"math": "+101"}, "bias.*expected -100 to 100"),
        ({"math": "-inf"}, "bias.*expected -100 to 100"),
        ({"math": "+nan"}, "bias.*expected -100 to 100"),
        ({"math": "loud"}, "'math' is set to 'loud', expected a weight"),
        ("math", "'math' is no setting of an expert: expected NAME=WEIGHT"),
        ("math=", "is no setting"),
        ("=1", "is no setting"),
        ({"\x1b[31m" * 99: 1}, "no expert '\ufffd\\[31m"),
    ],
)
def test_bad_settings(spec: Any, match: str) -> None:
    """One line each, without control characters."""
    with pytest.raises(ValueError, match=match) as caught:
        ExpertSettings.parse(spec, NAMES)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize("spec", [{1.5: 1}, {True: 1}, {"math": True}, {"math": [1]}])
def test_bad_types(spec: Any) -> None:
    """Keys and values that mean nothing."""
    with pytest.raises(TypeError, match="expert"):
        ExpertSettings.parse(spec, NAMES)


def test_a_plain_base_has_no_experts() -> None:
    """Even "*" is refused."""
    assert ExpertSettings.parse({}, []) == ExpertSettings()
    for spec in ({"math": 1}, {0: 1}, {"*": "mute"}):
        with pytest.raises(ValueError, match="plain base"):
            ExpertSettings.parse(spec, [])


VALUES = st.one_of(
    st.floats(1e-6, 1e6), st.just("mute"), st.floats(-100, 100).map(lambda b: f"{b:+.6g}")
)


@example({"math": 1.000001})
@given(st.dictionaries(st.sampled_from(NAMES), st.floats(1e-6, 1e6)))
def test_weights_read_back_are_the_same(spec: dict[str, float]) -> None:
    """as_dict and text are what parse takes, and say the same; float32 in between changes nothing."""
    s = ExpertSettings.parse(spec, NAMES)
    assert ExpertSettings.parse(s.as_dict(NAMES), NAMES) == s
    narrow = ExpertSettings(tuple(np.float32(s.weights).tolist()))
    assert ExpertSettings.parse(narrow.as_dict(NAMES), NAMES).weights == narrow.weights
    if spec:
        assert math.isclose(sum(s.weights), 1)
    again = ExpertSettings.parse(parse_text(s.text(NAMES)), NAMES)
    np.testing.assert_allclose(again.weights, s.weights, atol=2e-3)


LOGITS = st.lists(st.floats(-80, 80, width=32), min_size=4, max_size=4)
BIASES = st.one_of(st.just(-math.inf), st.just(0.0), st.floats(-100, 100, width=32))


@given(LOGITS, st.integers(1, 4), st.lists(BIASES, min_size=4, max_size=4))
def test_the_biased_choice(logits: list[float], k: int, bias: list[float]) -> None:
    """Against NumPy in float64: stable order, softmax over what is chosen, none that is muted."""
    found = _native.route(np.float32(logits), k, bias=bias)
    b = np.float32(bias)
    score = (np.clip(np.float32(logits), -50, 50) + b).astype(np.float64)
    k = min(k, int(np.isfinite(b).sum()))
    order = np.argsort(-score, kind="stable")[:k]
    assert found[k:] == order.tolist()
    e = np.exp(score[order] - score[order].max(initial=-math.inf))
    np.testing.assert_allclose(found[:k], e / e.sum() if k else [], rtol=1e-5, atol=1e-38)


@given(LOGITS, st.lists(st.floats(0, 1e3, width=32), min_size=4, max_size=4).filter(any))
def test_the_forced_choice(logits: list[float], weights: list[float]) -> None:
    """Whatever the router says: every expert with a weight, the largest first, summing to 1."""
    found = _native.route(np.float32(logits), 2, weights=weights)
    k = len(found) // 2
    w = np.float64(np.float32(weights))
    w = np.float64(np.float32(w / w.sum()))
    order = [e for e in np.argsort(-w, kind="stable").tolist() if w[e] > 0]
    assert found[k:] == order
    np.testing.assert_allclose(found[:k], w[order], rtol=1e-6)


def test_the_native_module_checks_too() -> None:
    """Lists of another length, both at once, no weight, numbers that are none."""
    logits = np.zeros(4, np.float32)
    for bad, match in (
        ({"weights": [1.0]}, "1 experts, and the model has 4"),
        ({"weights": [1, 0, 0, 0], "bias": [0, 0, 0, 1]}, "forced and biased"),
        ({"weights": [0, 0, 0, 0]}, "every forced"),
        ({"weights": [math.nan, 1, 0, 0]}, "weight is nan"),
        ({"weights": [-1, 2, 0, 0]}, "weight is -1"),
        ({"bias": [math.inf, 0, 0, 0]}, "bias is inf"),
        ({"bias": [math.nan, 0, 0, 0]}, "bias is"),
    ):
        with pytest.raises(ValueError, match=match):
            _native.route(logits, 2, **bad)


def some_routes(
    seed: int, layers: int = 3, tokens: int = 7, k: int = 2, experts: int = 5
) -> Routes:
    """Random ones."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((layers, tokens, experts)), axis=2)[..., :k].astype(np.int32)
    w = np.sort(rng.dirichlet(np.ones(k), (layers, tokens)).astype(np.float32), axis=2)[..., ::-1]
    return Routes(ids, w, experts)


def test_figures_of_routes() -> None:
    """Against plain loops."""
    r = some_routes(1)
    layer, token = np.zeros((3, 5)), np.zeros((7, 5))
    for i in range(3):
        for t in range(7):
            for j in range(2):
                layer[i, r.ids[i, t, j]] += r.weights[i, t, j] / 7
                token[t, r.ids[i, t, j]] += r.weights[i, t, j] / 3
    np.testing.assert_allclose(r.by_layer(), layer)
    np.testing.assert_allclose(r.by_token(), token)
    np.testing.assert_allclose(r.shares(), layer.mean(0))
    assert r.leading().tolist() == token.argmax(1).tolist()
    both = joined([r, some_routes(2)])
    assert both.n_tokens == 14
    np.testing.assert_allclose(both.shares(), (r.shares() + some_routes(2).shares()) / 2)


def test_figures_of_agreement() -> None:
    """Against plain loops; a routing agrees with itself wholly."""
    a, b = some_routes(3), some_routes(4)
    found = agreement(a, b)
    for i in range(3):
        sets = [(set(a.ids[i, t].tolist()), set(b.ids[i, t].tolist())) for t in range(7)]
        assert found.same_set[i] == np.mean([x == y for x, y in sets])
        assert math.isclose(found.overlap[i], np.mean([len(x & y) / 2 for x, y in sets]))
        assert found.same_first[i] == np.mean(a.ids[i, :, 0] == b.ids[i, :, 0])
    assert agreement(a, a).total() == pytest.approx(dict.fromkeys(found.total(), 1.0))
    with pytest.raises(ValueError, match=r"7 tokens, 2 of 5 experts.*6 tokens, 2 of 5"):
        agreement(a, some_routes(3, tokens=6))
