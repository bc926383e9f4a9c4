"""Several contexts on one loaded model: independent, equal to serial runs, free to outlive it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gguf_mutate import Gguf
from models import TinyModel, random_tokens
from numpy.typing import NDArray
from sardine_gguf import BusyError, Cancelled, Sardine

MODES = ("sparse", "gain", "off")


def work(context: Sardine, seed: int) -> list[NDArray[np.float32]]:
    """A batch, single tokens, an odd batch and a generation."""
    tokens = random_tokens(110, seed)
    out = [context.eval(tokens[:70])]
    out += [context.eval([t]) for t in tokens[70:75]]
    out.append(context.eval(tokens[75:]))
    out.append(context.session.last_logits())
    generation = context.start([*tokens, 9], max_tokens=12, temperature=0.9, seed=seed)
    list(generation)
    out.append(np.array(generation.tokens, np.float32))
    return out


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_eight_threads_on_eight_contexts_equal_serial_runs(wide: TinyModel, kv_type: str) -> None:
    """Bit for bit, in all modes at once, each context with its own prompt."""
    options = [{"delta_mode": MODES[i % 3], "kv_type": kv_type} for i in range(8)]
    serial = []
    for i in range(8):
        with wide.open(**options[i]) as alone:
            serial.append(work(alone, i))
    with wide.open() as model:
        contexts = [model.new_context(**o) for o in options]  # type: ignore[arg-type]
        start = threading.Barrier(8)

        def run(i: int) -> list[NDArray[np.float32]]:
            start.wait()
            return work(contexts[i], i)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(run, range(8)))
    for a, b in zip(found, serial, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_options_are_inherited(wide: TinyModel) -> None:
    """None takes the first context's; everything can differ."""
    with wide.open(n_ctx=64, n_batch=16, n_threads=2, delta_mode="gain") as a:
        b = a.new_context()
        assert (b.n_ctx, b.session.n_batch, b.session.n_threads) == (64, 16, 2)
        assert (b.delta_mode, b.kv_type) == ("gain", "f32")
        c = a.new_context(n_ctx=100, n_batch=7, n_threads=1, delta_mode="off", kv_type="q8_0")
        assert (c.n_ctx, c.session.n_batch, c.session.n_threads) == (100, 7, 1)
        assert (c.delta_mode, c.kv_type) == ("off", "q8_0")
        assert (a.n_ctx, a.delta_mode, a.kv_type) == (64, "gain", "f32")
        b.eval([1, 2, 3])
        assert (a.n_tokens, b.n_tokens, c.n_tokens) == (0, 3, 0)
        for bad in ({"n_ctx": -3}, {"n_threads": -1}, {"n_ctx": "most"}, {"kv_type": "q4_0"}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                a.new_context(**bad)  # type: ignore[arg-type]


def test_n_ctx_0_is_all_of_the_model(wide: TinyModel, tmp_path: Path) -> None:
    """As in llama.cpp; None stops at 8192."""
    g = Gguf.parse(wide.gguf.read_bytes())
    g.set("mistral3.context_length", "u32", 9000)
    path = tmp_path / "m.gguf"
    path.write_bytes(g.build())
    with Sardine(path, n_ctx=0) as m, m.new_context(n_ctx=0) as other, Sardine(path) as usual:
        assert (m.n_ctx, other.n_ctx, usual.n_ctx) == (9000, 9000, 8192)


def test_any_may_be_closed_first(wide: TinyModel) -> None:
    """The mapping stays until the last context goes; the closed one says so."""

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(wide.gguf))

    before = mapped()
    tokens = random_tokens(40)
    first = wide.open()
    second, third = first.new_context(), first.new_context()
    expected = first.eval(tokens)
    first.close()
    assert mapped() > before
    with pytest.raises(ValueError, match="closed"):
        first.eval([1])
    with pytest.raises(ValueError, match="closed"):
        first.new_context()
    np.testing.assert_array_equal(second.eval(tokens), expected)
    assert second.detokenize(second.tokenize("the rain")) == "the rain"
    fourth = second.new_context()
    second.close()
    np.testing.assert_array_equal(third.eval(tokens), expected)
    third.close()
    np.testing.assert_array_equal(fourth.eval(tokens), expected)
    fourth.close()
    assert mapped() == before


def test_closing_while_another_thread_evaluates(wide: TinyModel) -> None:
    """The evaluation goes on to its end, or to cancel(); the memory goes after it."""
    tokens = random_tokens(250, 3)
    with wide.open() as alone:
        expected = alone.eval(tokens)
    for _ in range(5):
        model = wide.open(n_batch=1)
        context = model.new_context(n_batch=512)
        with ThreadPoolExecutor(2) as pool:
            a = pool.submit(context.eval, tokens)
            b = pool.submit(model.eval, tokens)
            model.close()
            context.close()
        for result in (a, b):
            if error := result.exception():  # closed before it began
                assert isinstance(error, ValueError)
                assert "closed" in str(error)
            else:
                assert np.abs(result.result() - expected).max() < 1e-3


def test_a_busy_context_does_not_hold_up_others(wide: TinyModel) -> None:
    """While one evaluates, it is busy and its sibling is not."""
    with wide.open(n_batch=1) as model:
        other = model.new_context()
        seen: list[str] = []
        started, stop = threading.Event(), threading.Event()

        def evaluate() -> None:
            started.set()
            while not stop.is_set():
                model.reset()
                try:
                    model.eval(random_tokens(250, 1))
                except Cancelled:
                    seen.append("cancelled")

        thread = threading.Thread(target=evaluate)
        thread.start()
        started.wait()
        try:
            for _ in range(2000):
                other.reset()
                other.eval([1, 8])
                try:
                    assert model.session.tokens is not None
                except BusyError:
                    break
            else:
                pytest.fail("the evaluating context was never busy")
        finally:
            stop.set()
            model.cancel()
            thread.join()
