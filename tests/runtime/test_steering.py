"""Forced, muted and biased experts: equal to PyTorch with another router; nothing outlives its context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import TinyModel, nmse, random_tokens
from reference import Reference
from sardine_gguf import FormatError, Sardine
from test_parity import MAX_NMSE, N_TOKENS
from torch import Tensor

TOKENS = random_tokens(N_TOKENS, seed=5)
MESSAGES = [{"role": "user", "content": "one two three"}]
Choose = Callable[[Tensor], tuple[Tensor, Tensor]]


def forced(weights: dict[int, float]) -> Choose:
    """A router that always gives these experts these weights, the largest first."""
    order = sorted(weights, key=lambda e: (-weights[e], e))
    total = sum(weights.values())

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*logits.shape[:2], len(order))
        w = torch.tensor([weights[e] / total for e in order])
        return torch.tensor(order).expand(shape), w.expand(shape)

    return choose


def biased(bias: list[float], top_k: int) -> Choose:
    """The router with a bias on its clamped logits; -inf leaves an expert out."""
    k = min(top_k, sum(b > -torch.inf for b in bias))

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        top, ids = torch.topk(logits + torch.tensor(bias), k, dim=-1)
        return ids, torch.softmax(top, dim=-1)

    return choose


MUTE = -torch.inf
CASES: dict[str, tuple[dict[Any, Any], Choose]] = {
    "force_one": ({3: 1.0}, forced({3: 1.0})),
    "force_one_by_name": ({"logic": 0.01}, forced({1: 1.0})),
    "force_two": ({"science": 1, "math": 3}, forced({0: 3.0, 3: 1.0})),
    "force_more_than_k": ({"*": 1.0, 4: 2.0}, forced({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0})),
    "mute_one": ({"code": "mute"}, biased([0, 0, MUTE, 0, 0], 3)),
    "mute_to_k": ({0: None, 4: 0}, biased([MUTE, 0, 0, 0, MUTE], 3)),
    "mute_below_k": ({"*": "mute", 1: "+0", 3: "+0.0"}, biased([MUTE, 0, MUTE, 0, MUTE], 3)),
    "mute_all_but_one": ({"*": "mute", 2: "+0"}, biased([MUTE, MUTE, 0, MUTE, MUTE], 3)),
    "bias": ({"math": "+0.5", "planning": "-0.25"}, biased([0.5, 0, 0, 0, -0.25], 3)),
    "bias_and_mute": ({2: "+1", 3: "mute"}, biased([0, 0, 1, MUTE, 0], 3)),
    "bias_that_decides": ({2: "+100"}, biased([0, 0, 100, 0, 0], 3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["sparse", "gain"])
def test_equal_to_a_reference_with_the_router_replaced(
    tiny: TinyModel, name: str, mode: str
) -> None:
    """Logits, experts and weights, within the bound of test_parity; and the setting does something."""
    spec, choose = CASES[name]
    reference = Reference(tiny.base, tiny.srde, tiny.top_k, mode)
    for ffn in reference.layers.values():
        ffn.choose = choose  # type: ignore[method-assign]
    expected = reference.logits(TOKENS).numpy()
    with tiny.open(delta_mode=mode, experts=spec) as m:
        found = m.eval(TOKENS)
        ids, weights = m.routing()
        assert m.routes().n_tokens == N_TOKENS
    with tiny.open(delta_mode=mode) as free:
        assert nmse(found, free.eval(TOKENS)) > 10 * MAX_NMSE
    assert nmse(found, expected) <= MAX_NMSE
    expected_ids, expected_weights = (t.numpy() for t in reference.routing())
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["force_more_than_k", "mute_all_but_one", "bias"])
def test_single_tokens_equal_a_batch(tiny: TinyModel, name: str) -> None:
    """Both kernel paths, with more and fewer experts than the model's k; rounding alone differs."""
    spec, _ = CASES[name]
    with tiny.open(experts=spec) as m:
        batch = m.eval(TOKENS[:40])
        m.reset()
        rows = np.concatenate([m.eval([t]) for t in TOKENS[:40]])
    assert nmse(rows, batch) <= MAX_NMSE


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("mode", ["sparse", "gain"])
def test_muting_all_is_off(wide: TinyModel, mode: str, kv_type: str) -> None:
    """To the bit, in a batch and token by token; nothing is routed."""
    with (
        wide.open(delta_mode=mode, experts={"*": "mute"}, kv_type=kv_type) as muted,
        wide.open(delta_mode="off", kv_type=kv_type) as off,
    ):
        for part in ([*TOKENS[:90]], [TOKENS[90]], TOKENS[91:94], [TOKENS[94]]):
            np.testing.assert_array_equal(muted.eval(part), off.eval(part))
        assert muted.routing()[0].shape == (3, 1, 0)
        assert muted.routes().shares().tolist() == [0, 0, 0, 0]
        assert muted.routes().leading().tolist() == [-1]
        assert muted.delta_mode == mode


def test_muting_all_is_off_with_a_shared_part(small_shared: TinyModel) -> None:
    """The part that every mode adds is still added."""
    with (
        small_shared.open(experts="*=mute") as muted,
        small_shared.open(delta_mode="off") as off,
    ):
        tokens = random_tokens(80, vocab=270)
        np.testing.assert_array_equal(muted.eval(tokens), off.eval(tokens))
        np.testing.assert_array_equal(muted.eval([7]), off.eval([7]))


def test_nothing_is_set_by_no_settings(tiny: TinyModel) -> None:
    """None, {}, "" and biases of 0 are the router's free choice, to the bit."""
    with tiny.open() as free:
        expected = free.eval(TOKENS)
    for spec in (None, {}, "", {"math": "+0"}, "*=-0"):
        with tiny.open(experts=spec) as m:
            assert m.experts == {}
            np.testing.assert_array_equal(m.eval(TOKENS), expected)


def test_settings_do_not_leak(tiny: TinyModel) -> None:
    """Of a context into others, the model, or a context made later; bit for bit."""
    with tiny.open() as alone:
        free = alone.eval(TOKENS)
    with tiny.open(experts={"logic": 1}) as alone:
        logic = alone.eval(TOKENS)
    with tiny.open() as a:
        b = a.new_context(experts={"logic": 1})
        c = b.new_context()
        d = b.new_context(experts={})
        assert [x.experts for x in (a, b, c, d)] == [{}, {"logic": 1.0}, {"logic": 1.0}, {}]
        for context, expected in ((b, logic), (a, free), (d, free), (c, logic)):
            np.testing.assert_array_equal(context.eval(TOKENS), expected)
        c.experts = {"code": "mute"}
        assert c.experts == {"code": "mute"}
        assert b.experts == {"logic": 1.0}
        b.reset()
        np.testing.assert_array_equal(b.eval(TOKENS), logic)
        off = b.new_context(delta_mode="off")
        assert off.experts == {}
        a.experts = "logic=2"
        np.testing.assert_array_equal(a.eval(TOKENS), logic)
        a.experts = None
        np.testing.assert_array_equal(a.eval(TOKENS), free)


def greedy(m: Sardine, prompt: list[int], **options: Any) -> list[int]:
    """Ten tokens."""
    generation = m.start(prompt, max_tokens=10, temperature=0, reuse_prefix=True, **options)
    for _ in generation:
        pass
    return generation.tokens


def test_a_change_empties_the_context(tiny: TinyModel) -> None:
    """The next turn equals that of a fresh context and evaluates all of it; the same settings keep it."""
    with tiny.open() as m:
        m.eval(TOKENS[:60])
        m.experts = {"math": "mute"}
        assert m.n_tokens == 0
        assert m.session.last_logits().size == 0
        m.eval(TOKENS[:60])
        m.experts = {0: None}
        m.experts = dict(m.experts)
        assert m.n_tokens == 60
        turn = [*TOKENS[:60], *TOKENS[70:90]]
        before = m.session.counts["tokens"]
        greedy(m, turn)
        assert m.session.counts["tokens"] - before == 20 + 9
        m.experts = {"math": "mute", "code": "+2"}
        before = m.session.counts["tokens"]
        found = greedy(m, turn)
        assert m.session.counts["tokens"] - before == 80 + 9
        logits = m.session.last_logits()
        with tiny.open(experts={"math": "mute", "code": "+2"}) as fresh:
            assert greedy(fresh, turn) == found
            np.testing.assert_array_equal(fresh.session.last_logits(), logits)


def test_settings_of_one_call(tiny: TinyModel) -> None:
    """They hold for that call; a call without them equals one in a context that never had any."""
    prompt = TOKENS[:50]
    with tiny.open() as free, tiny.open(experts={"science": 1}) as science:
        plain, steered = greedy(free, prompt), greedy(science, prompt)
        logits = {"plain": free.session.last_logits(), "science": science.session.last_logits()}
        assert greedy(science, prompt, experts={}) == plain
        np.testing.assert_array_equal(science.session.last_logits(), logits["plain"])
    with tiny.open() as m:
        assert greedy(m, prompt, experts={"science": 5}) == steered
        np.testing.assert_array_equal(m.session.last_logits(), logits["science"])
        assert m.experts == {}
        before = m.session.counts["tokens"]
        greedy(m, prompt, experts="science=1")  # the same settings go on from what is there
        assert m.session.counts["tokens"] - before == 1 + 9
        assert greedy(m, prompt) == plain
        np.testing.assert_array_equal(m.session.last_logits(), logits["plain"])
        greedy(m, prompt, experts={"science": 1})
        m.eval([9])  # evaluates with the context's own, so nothing of before is left
        assert m.n_tokens == 1
        assert len(set(np.unique(m.routing()[0]))) > 1


def test_calls_of_every_kind_take_settings(tiny: TinyModel) -> None:
    """create_completion, create_chat_completion, generate, stream_generate, generate_tokens."""
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "experts": {"math": 1.0}}

    def routed(m: Sardine) -> set[int]:
        return set(np.unique(m.routing()[0]).tolist())

    with tiny.open() as m:
        for call in (
            lambda: m.create_completion("one", **options),
            lambda: list(m.create_completion("one", stream=True, **options)),
            lambda: m.create_chat_completion(MESSAGES, **options),
            lambda: m.generate("one", **options),
            lambda: list(m.stream_generate("one", **options)),
            lambda: list(m.generate_tokens("one", **options)),
        ):
            call()
            assert routed(m) == {0}
            m.generate("one two", max_tokens=2)
            assert routed(m) != {0}
        with pytest.raises(ValueError, match="no expert 'maths': did you mean 'math'"):
            m.create_completion("one", experts={"maths": 1})


def test_states_keep_the_settings(tiny: TinyModel, tmp_path: Path) -> None:
    """What follows a loaded state is the same, bit for bit, and `experts` tells which it has."""
    for spec in ({"math": 1, "code": 2}, {"math": "mute", "logic": "+0.3"}, {}, {"*": None}):
        with tiny.open(experts=spec) as m:
            m.eval(TOKENS[:30])
            state, settings = m.save_state(), m.experts
            expected = m.eval(TOKENS[30:60])
        with tiny.open(experts={"logic": 1}) as other:
            other.eval([1, 2])
            other.load_state(state)
            assert other.experts.keys() == settings.keys()
            assert other.n_tokens == 30
            np.testing.assert_array_equal(other.eval(TOKENS[30:60]), expected)
            other.experts = dict(other.experts)  # what was read back is no change
            assert other.n_tokens == 60
    with tiny.open(experts={"math": 1}) as m:
        bad = bytearray(m.save_state())
    bad[80:84] = np.float32(2).tobytes()
    from test_state import rebuilt

    with tiny.open() as m, pytest.raises(FormatError, match="do not sum to 1"):
        m.load_state(rebuilt(bytes(bad)))
    bad[80:84] = np.float32("nan").tobytes()
    with tiny.open() as m, pytest.raises(FormatError, match="settings of experts are damaged"):
        m.load_state(rebuilt(bytes(bad)))


@pytest.mark.parametrize("own", [{}, {"logic": 1}, {"code": "+1.5"}])
@pytest.mark.parametrize("to_file", [False, True])
def test_a_saved_state_keeps_the_contexts_own_settings(
    tiny: TinyModel, tmp_path: Path, own: Any, to_file: bool
) -> None:
    """After a call with others, with which the tokens were computed: what follows is as without saving."""
    call: Any = {"experts": {"math": 1}, "temperature": 0, "max_tokens": 6}

    def follows(m: Sardine) -> list[Any]:
        """Tokens that a further call with the same settings reuses, then the context's own."""
        again = m.start([*TOKENS[:30], 9], **call)
        list(again)
        return [again.timings.cached_tokens, again.tokens, m.experts, m.eval(TOKENS[:20])]

    with tiny.open(experts=own) as m:
        settings = m.experts
        list(m.start(TOKENS[:30], **{**call, "max_tokens": 1}))
        assert m.experts == settings
        state = m.save_state()
        m.save_state(tmp_path / "s.state")
        expected = follows(m)
    assert expected[0] == 30
    for start in ({"science": 1}, {}, own):
        with tiny.open(experts=start) as m:
            m.eval([1, 2])
            m.load_state(tmp_path / "s.state" if to_file else state)
            assert m.experts == settings
            assert m.n_tokens == 30
            for a, b in zip(follows(m), expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_off_and_plain_bases_refuse_settings(tiny: TinyModel) -> None:
    """Nothing is routed there; a mapping for experts that are not there is a mistake."""
    with pytest.raises(ValueError, match='delta_mode "off" runs none'):
        tiny.open(delta_mode="off", experts={"math": 1})
    with tiny.open(delta_mode="off") as m:
        m.experts = {}
        with pytest.raises(ValueError, match='delta_mode "off"'):
            m.experts = {"math": 1}
        with pytest.raises(ValueError, match='delta_mode "off"'):
            m.generate("one", experts={"math": "mute"})
        with pytest.raises(ValueError, match="runs none"):
            m.session.steer(weights=[1, 0, 0, 0, 0], bias=[])
