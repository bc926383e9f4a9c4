"""Loading, and saving and loading states: progress, and cancelling on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from models import TinyModel, cancelling, random_tokens
from sardine_gguf import Cancelled, Sardine


def test_progress(tiny: TinyModel) -> None:
    """From 0 to 1, and never back."""
    seen: list[float] = []
    with Sardine(tiny.gguf, progress=seen.append) as m:
        assert m.eval([1, 9]).shape[0] == 2
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert len(seen) >= 5


@pytest.mark.parametrize("at", [0.0, 0.3, 1.0])
def test_progress_that_raises(tiny: TinyModel, at: float) -> None:
    """Ends the loading with its own exception; the file can be loaded again."""

    class Stop(Exception):
        pass

    def stop(done: float) -> None:
        if done >= at:
            raise Stop

    for _ in range(3):
        with pytest.raises(Stop):
            Sardine(tiny.gguf, progress=stop)
    Sardine(tiny.gguf).close()


def test_an_adapters_progress(tiny: TinyModel, tmp_path: Path) -> None:
    from sardine_gguf.convert import convert, write_base

    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    write_base(tiny.base, base, "f32")
    convert(tiny.base, tiny.srde, adapter, adapter=True, n_threads=2)
    seen: list[float] = []
    Sardine(base, adapter=adapter, progress=seen.append).close()
    assert len(seen) >= 5
    plain: list[float] = []
    Sardine(base, progress=plain.append).close()
    assert (plain[0], plain[-1]) == (0.0, 1.0)


def cancelled(m: Sardine, call: Callable[[], object]) -> bool:
    """Whether one of many calls was cancelled by another thread that keeps asking."""
    with cancelling(m):
        for _ in range(500):
            try:
                call()
            except Cancelled:
                return True
    return False


def test_states(tiny: TinyModel, tmp_path: Path) -> None:
    """Saving and loading can be cancelled; what a file held stays, and the next call does all of it."""
    with tiny.open(n_ctx=4096) as m:
        m.eval(random_tokens(4000))
        state = m.save_state()
        path = tmp_path / "a.state"
        m.save_state(path)
        before = path.read_bytes()
        assert before == state
        assert cancelled(m, m.save_state)
        assert cancelled(m, lambda: m.save_state(path))
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.state"]
        assert cancelled(m, lambda: m.load_state(state))
        assert m.n_tokens in (0, 4000)
        assert cancelled(m, lambda: m.load_state(path))
        m.load_state(path)
        assert m.save_state() == state
