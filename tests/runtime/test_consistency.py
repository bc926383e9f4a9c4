"""The same tokens give the same logits however they are cut, threaded or computed.

Only the order of float32 sums may differ between batch sizes and instruction sets, so the bound is that of
the parity tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import TinyModel, nmse, random_tokens, text_of
from numpy.typing import NDArray
from sardine_gguf import _native

MAX_NMSE = 1e-9
N_TOKENS = 200
TOKENS = random_tokens(N_TOKENS, seed=5)
MODES = ("sparse", "gain", "off")


@pytest.fixture(scope="module")
def whole(tiny: TinyModel) -> dict[str, NDArray[np.float32]]:
    """Logits of each mode in one batch."""
    out = {}
    for mode in MODES:
        with tiny.open(delta_mode=mode) as m:
            out[mode] = m.eval(TOKENS)
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_batch", [1, 3, 4, 5, 7, 32, 33, 64, 199])
def test_batch_sizes(
    tiny: TinyModel, whole: dict[str, NDArray[np.float32]], mode: str, n_batch: int
) -> None:
    """n_batch cuts one call; 4 and 5 are the two sides of the kernels' switch to tiles."""
    with tiny.open(delta_mode=mode, n_batch=n_batch) as m:
        assert nmse(m.eval(TOKENS), whole[mode]) <= MAX_NMSE


@pytest.mark.parametrize("step", [1, 30])
@pytest.mark.parametrize(("kv_type", "bound"), [("f32", MAX_NMSE), ("f16", 5e-5)])
def test_off_over_its_change_of_attention(
    tiny: TinyModel, step: int, kv_type: str, bound: float
) -> None:
    """Up to 512 positions few tokens use ggml's flash attention, then ours; batches ggml's.

    With f16 ggml sums values of few tokens in f16, 5.6e-6 apart from f32 on this kind of model.
    """
    tokens = random_tokens(600, seed=6)
    options = {"delta_mode": "off", "kv_type": kv_type, "n_ctx": 640}
    with tiny.open(**options) as m:
        expected = m.eval(tokens)
    with tiny.open(**options) as m:
        found = np.concatenate([m.eval(tokens[i : i + step]) for i in range(0, 600, step)])
    for part in (slice(0, 512), slice(512, 600)):
        assert nmse(found[part], expected[part]) <= bound


def test_calls_of_odd_sizes(tiny: TinyModel, whole: dict[str, NDArray[np.float32]]) -> None:
    """Evaluations of many sizes one after another, with their routes."""
    with tiny.open() as m:
        at, logits, ids = 0, [], []
        for n in (1, 5, 33, 1, 1, 2, 64, 4, 31, 32, 26):
            logits.append(m.eval(TOKENS[at : at + n]))
            ids.append(m.routing()[0])
            at += n
        assert at == N_TOKENS == m.n_tokens
        assert nmse(np.concatenate(logits), whole["sparse"]) <= MAX_NMSE
        m.reset()
        m.eval(TOKENS)
        np.testing.assert_array_equal(np.concatenate(ids, axis=1), m.routing()[0])


@pytest.mark.parametrize("mode", MODES)
def test_decode_keeps_the_last_logits(tiny: TinyModel, mode: str) -> None:
    """The path without all logits, in one batch and in several, and token by token: its last layer computes
    the FFN of the last token alone, but routes all of them."""
    for n_batch in (512, 7):
        with tiny.open(n_batch=n_batch, delta_mode=mode) as m:
            expected = m.eval(TOKENS)[-1]
            np.testing.assert_array_equal(m.session.last_logits(), expected)
            routes = m.session.routing()
            m.reset()
            assert m.session.last_logits().size == 0
            m.session.decode(TOKENS)
            assert nmse(m.session.last_logits(), expected) <= MAX_NMSE
            ids, weights = m.session.routing()
            np.testing.assert_array_equal(ids, routes[0])
            np.testing.assert_allclose(weights, routes[1], rtol=0, atol=1e-5)
            m.reset()
            for t in TOKENS:
                m.session.decode([t])
            assert nmse(m.session.last_logits(), expected) <= MAX_NMSE


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_threads(tiny: TinyModel, whole: dict[str, NDArray[np.float32]], n_threads: int) -> None:
    """Any number of threads, batch and single tokens."""
    with tiny.open(n_threads=n_threads) as m:
        assert nmse(m.eval(TOKENS[:-3]), whole["sparse"][:-3]) <= MAX_NMSE
        for i in (-3, -2, -1):
            assert nmse(m.eval([TOKENS[i]]), whole["sparse"][i : i + 1 or None]) <= MAX_NMSE


def test_reset_is_a_fresh_start(tiny: TinyModel) -> None:
    """The same calls after reset() give the same bits; what was there before leaves no trace."""
    with tiny.open() as m:
        m.eval(random_tokens(150, seed=8))
        m.reset()
        assert m.n_tokens == 0
        first = [m.eval(TOKENS[:70]), m.eval(TOKENS[70:71]), m.eval(TOKENS[71:])]
        m.reset()
        second = [m.eval(TOKENS[:70]), m.eval(TOKENS[70:71]), m.eval(TOKENS[71:])]
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


def test_truncation(tiny: TinyModel, whole: dict[str, NDArray[np.float32]]) -> None:
    """Keeping a prefix and evaluating the rest equals evaluating it all."""
    with tiny.open() as m:
        m.eval(TOKENS[:120] + random_tokens(60, seed=9))
        m.session.truncate(120)
        assert m.n_tokens == 120
        assert m.session.tokens == TOKENS[:120]
        assert nmse(m.eval(TOKENS[120:]), whole["sparse"][120:]) <= MAX_NMSE
        m.session.truncate(10**6)
        assert m.n_tokens == N_TOKENS
        with pytest.raises(ValueError, match="-1"):
            m.session.truncate(-1)


def test_prefix_reuse_gives_the_same_text(tiny: TinyModel) -> None:
    """A prompt that shares a start with the last one: same greedy tokens as from an empty context."""
    prompts = [TOKENS[:90], [*TOKENS[:60], 20, 21, 22], TOKENS[:90], [*TOKENS[:90], 30, 31]]
    with tiny.open() as warm:
        for prompt in prompts:
            generation = warm.start(prompt, max_tokens=24, temperature=0, reuse_prefix=True)
            text = "".join(piece for _, piece in generation)
            if prompt is not prompts[0]:
                assert generation.timings.cached_tokens >= 59
            with tiny.open() as cold:
                assert text_of(cold, prompt, max_tokens=24, temperature=0) == text


def test_f16_cache(tiny: TinyModel, whole: dict[str, NDArray[np.float32]]) -> None:
    """Keys and values rounded to 11 bits: relative errors of 2^-12 in each of three layers.

    Squared, that is 6e-8 a layer; ten times their sum is the bound. The routes may differ in near ties,
    which this model has not.
    """
    bound = 10 * 3 * 2.0**-24
    for mode in MODES:
        with tiny.open(kv_type="f16", delta_mode=mode) as m:
            found = m.eval(TOKENS)
        assert 0 < nmse(found, whole[mode]) <= bound


_PROGRAM = """
import json, sys
import numpy as np
from sardine_gguf import Sardine, _native
m = Sardine(sys.argv[1], kv_type="f32", n_threads=2)
tokens = json.loads(sys.argv[2])
y = np.concatenate([m.eval(tokens[:150]), m.eval(tokens[150:151]), m.eval(tokens[151:])])
np.save(sys.argv[3], y)
print(_native.kernel_path())
"""


def run_path(tiny: TinyModel, path: str, out: Path) -> subprocess.CompletedProcess[str]:
    """A process with SARDINE_CPU set."""
    arguments = [str(tiny.gguf), json.dumps(TOKENS), str(out)]
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env={**os.environ, "SARDINE_CPU": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("path", _native.kernel_paths())
def test_instruction_sets(
    tiny: TinyModel, whole: dict[str, NDArray[np.float32]], path: str, tmp_path: Path
) -> None:
    """SARDINE_CPU chooses the kernels of a process, and all agree."""
    done = run_path(tiny, path, tmp_path / "y.npy")
    assert done.stdout.strip() == path, done.stderr
    assert nmse(np.load(tmp_path / "y.npy"), whole["sparse"]) <= MAX_NMSE


def test_unknown_instruction_set(tiny: TinyModel, tmp_path: Path) -> None:
    """A wrong name is an error that lists the right ones."""
    done = run_path(tiny, "mmx", tmp_path / "y.npy")
    assert done.returncode == 1
    assert "ValueError: SARDINE_CPU is 'mmx'" in done.stderr
