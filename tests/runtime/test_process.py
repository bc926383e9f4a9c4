"""Processes and threads: library loading, the GIL, cancellation, Ctrl-C, forks."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from models import TinyModel, make_model, random_tokens, text_of
from sardine_gguf import BusyError, Cancelled, Sardine, _libs


@pytest.fixture(scope="module")
def heavy_model(workshop: Path) -> TinyModel:
    """A model whose long evaluations take a second or more."""
    base = {"hidden": 256, "inner": 512, "layers": 6, "std": 0.05}
    return make_model(workshop / "heavy", base=base, srde={"density": 0.05})


@pytest.fixture
def heavy(heavy_model: TinyModel) -> Iterator[Sardine]:
    """Batches of 16, one thread: many nodes, each short."""
    with heavy_model.open(n_ctx=8192, n_batch=16, n_threads=1) as m:
        yield m


LONG = random_tokens(8000, seed=4)
PREFIX = LONG[:20]

_MAPPED = """
import sys
{imports}
m = sardine_gguf.Sardine(sys.argv[1])
m.eval([1, 8])
llama = llama_cpp.Llama(sys.argv[2], n_ctx=32, verbose=False)
llama.eval([1, 8])
import os
found = {{}}
for line in open("/proc/self/maps"):
    path = line.split()[-1]
    name = os.path.basename(path).split(".so")[0]
    if name.startswith(("libllama", "libggml")):
        found.setdefault(name, set()).add(os.path.realpath(path))
for name, paths in sorted(found.items()):
    print(name, len(paths))
"""


@pytest.mark.parametrize(
    "imports",
    ["import llama_cpp, sardine_gguf", "import sardine_gguf, llama_cpp"],
    ids=["llama_cpp_first", "sardine_first"],
)
def test_one_copy_of_each_library(tiny: TinyModel, workshop: Path, imports: str) -> None:
    """In both orders one libllama and one of each ggml library is mapped, and both packages work."""
    from sardine_gguf.convert import write_base

    plain = workshop / "mapped-base.gguf"
    if not plain.exists():
        write_base(tiny.base, plain, "f32")
    done = subprocess.run(
        [sys.executable, "-c", _MAPPED.format(imports=imports), str(tiny.gguf), str(plain)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert {"libllama", "libggml", "libggml-base"} <= set(counts)
    assert set(counts.values()) == {"1"}, counts


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another llama-cpp-python, or none: ImportError with the command that installs the right one."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.3.1")
    with pytest.raises(ImportError, match=r"0\.3\.1.*pip install llama-cpp-python=="):
        _libs.load()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="none is installed"):
        _libs.load()


def test_library_folder_override(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LLAMA_CPP_LIB_PATH without a library there is an ImportError that names the path."""
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(ImportError, match=str(tmp_path)):
        _libs.load()


def test_gil_is_released(heavy: Sardine) -> None:
    """Another thread counts on during an evaluation: never stopped for long."""
    stamps: list[float] = []
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            stamps.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    start = time.monotonic()
    heavy.eval(LONG[:1500])
    end = time.monotonic()
    done.set()
    thread.join()
    inside = [s for s in stamps if start < s < end]
    assert end - start > 0.1
    assert len(inside) > 20
    assert max(np.diff([start, *inside, end])) < (end - start) / 2


def test_two_threads_on_one_context(tiny: TinyModel) -> None:
    """BusyError or one after the other; what was evaluated is right."""
    with tiny.open(n_ctx=4096) as m:
        results: list[str] = []

        def work(seed: int) -> None:
            for t in random_tokens(60, seed):
                try:
                    m.eval([t])
                    results.append("ok")
                except BusyError:
                    results.append("busy")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert len(results) == 240
        tokens = m.session.tokens
        assert len(tokens) == results.count("ok") > 0
        with tiny.open(n_ctx=4096) as fresh:
            expected = fresh.eval([*tokens, 9])[-1]
        assert np.abs(m.eval([9])[0] - expected).max() < 1e-3


def test_contexts_in_threads(tiny: TinyModel) -> None:
    """A context for each thread: the results of one after another."""
    prompts = [random_tokens(50, seed) for seed in range(6)]
    with tiny.open() as m:
        expected = [text_of(m, p, max_tokens=12, temperature=0) for p in prompts]

    def work(prompt: list[int]) -> str:
        with tiny.open(n_threads=1) as own:
            return text_of(own, prompt, max_tokens=12, temperature=0)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, prompts)) == expected


def check_unchanged(m: Sardine, heavy_model: TinyModel) -> None:
    """The context holds PREFIX, and goes on as a fresh one."""
    assert m.session.tokens == PREFIX
    with heavy_model.open(n_ctx=8192, n_batch=16, n_threads=1) as fresh:
        fresh.eval(PREFIX)
        expected = fresh.eval(LONG[20:60])
    np.testing.assert_array_equal(m.eval(LONG[20:60]), expected)


def test_cancel(heavy: Sardine, heavy_model: TinyModel) -> None:
    """From another thread: Cancelled before the end, and the context as before."""
    heavy.eval(PREFIX)
    timer = threading.Timer(0.3, heavy.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        heavy.eval(LONG[20:])
    check_unchanged(heavy, heavy_model)
    heavy.cancel()  # nothing runs: no effect on the next call
    heavy.reset()
    heavy.eval([1])


def test_keyboard_interrupt(heavy: Sardine, heavy_model: TinyModel) -> None:
    """SIGINT during a long evaluation: KeyboardInterrupt before its end."""
    heavy.eval(PREFIX)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        heavy.eval(LONG[20:])
    check_unchanged(heavy, heavy_model)


def test_signal_handlers_run(heavy: Sardine) -> None:
    """A handler that returns does not stop the evaluation; one that raises does, with its own exception."""
    calls = []
    previous = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        heavy.eval(LONG[:1500])
        assert heavy.n_tokens == 1500
        assert calls

        def stop(*_: object) -> None:
            raise LookupError("stop")

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(LookupError, match="stop"):
            heavy.eval(LONG[1500:])
        assert heavy.n_tokens == 1500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_interrupted_generation(heavy: Sardine) -> None:
    """Ctrl-C in a generation's prompt: raised, and the next generation equals a fresh one."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        text_of(heavy, LONG[:7000], max_tokens=4, temperature=0)
    first = text_of(heavy, PREFIX, max_tokens=8, temperature=0)
    heavy.reset()
    assert text_of(heavy, PREFIX, max_tokens=8, temperature=0) == first


_REPLACED = """
import os, shutil, sys, numpy as np, sardine_gguf
path, other = sys.argv[1:]
m = sardine_gguf.Sardine(path)
a = m.eval([1, 8, 9]); m.reset()
os.replace(other, path)
b = m.eval([1, 8, 9])
print("same" if (a == b).all() else "other")
"""


def test_replaced_file(tiny: TinyModel, tmp_path: Path) -> None:
    """A new file renamed over the mapped one changes nothing for those who have it open."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(tiny.gguf.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", _REPLACED, str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr


def test_no_leaks(tiny: TinyModel) -> None:
    """Opening, failing and closing leave no file descriptor and no mapping behind."""

    def count() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(list(Path("/proc/self/fd").iterdir())), maps.count(".gguf")

    bad = tiny.gguf.with_name("leak.gguf")
    bad.write_bytes(tiny.gguf.read_bytes()[:-100])
    with tiny.open() as m:
        m.eval([1])
    before = count()
    for _ in range(20):
        with tiny.open() as m:
            m.eval([1])
        with pytest.raises(ValueError, match="truncated"):
            Sardine(bad)
    assert count() == before
