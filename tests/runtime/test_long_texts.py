"""Tokenizing texts of any length and kind: never a crash, llama.cpp's tokens, and Ctrl-C ends it."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EXAMPLE
from sardine_gguf import Cancelled, ContextOverflow, InsufficientMemory, Sardine, _native
from sardine_gguf.convert import convert

# What one match of the pre-tokenizer's expressions can hold; a longer text of the same overflows a stack of
# 8 MiB in libllama.
KINDS = {
    "letters": ("a", 27_000),
    "capitals": ("A", 27_000),
    "cjk": ("\u65e5", 40_000),
    "spaces": (" ", 160_000),
    "newlines": ("\n", 160_000),
    "marks": ("!", 30_000),
    "slashes": ("!" + "\n/" * 10, 15_000),
    "wide spaces": ("\u3000", 40_000),
    "emoji": ("\U0001f600", 40_000),
    "mixed": ("!!!!!!!!\r\n", 20_000),
}


@pytest.fixture(scope="module")
def example(workshop: Path) -> Path:
    """A model with tekken's rules."""
    path = workshop / "tekken.gguf"
    if not path.exists():
        convert(EXAMPLE / "base", EXAMPLE / "srde_weights.pt", path, n_threads=2)
    return path


@pytest.fixture(scope="module")
def model(example: Path) -> Iterator[Sardine]:
    with Sardine(example, n_ctx=64) as m:
        yield m


_WORKER = """
import json, sys, threading
import sardine_gguf
m = sardine_gguf.Sardine(sys.argv[1], n_ctx=64)
kinds, factor, stack = json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def work():
    for name, (unit, n) in kinds.items():
        text = unit * (n * factor)
        ids = m.tokenize(text, add_bos=False)
        assert m.detokenize(ids) == text, name
        print(name, len(ids))
if stack:
    threading.stack_size(stack)
    t = threading.Thread(target=work)
    t.start()
    t.join()
else:
    work()
"""


def run_worker(path: Path, factor: int, stack: int, limit: int = 8 << 20) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(path), json.dumps(KINDS), str(factor), str(stack)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_STACK, (limit, resource.getrlimit(resource.RLIMIT_STACK)[1])
        ),
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return {name: int(n) for name, n in (line.rsplit(" ", 1) for line in done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("factor", "stack"), [(1, 0), (5, 0), (1, 128 << 10)], ids=["main", "long", "small_stack"]
)
def test_runs_of_one_kind(example: Path, factor: int, stack: int) -> None:
    """On the main thread with 8 MiB of stack, and on one with little; all of the text is in the tokens."""
    assert run_worker(example, factor, stack).keys() == KINDS.keys()


def test_same_tokens_as_llama_cpp(example: Path, model: Sardine) -> None:
    """With a stack of its own as without."""
    llama = llama_cpp.Llama(str(example), vocab_only=True, verbose=False)
    for unit, n in KINDS.values():
        text = "Once upon a time, " + unit * (n // 40) + " 12 fish's swam.\n"
        expected = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert model.tokenize(text, add_bos=False) == expected
        assert model.tokenize(text * 30, add_bos=False) == llama.tokenize(
            (text * 30).encode(), add_bos=False, special=False
        )


PIECES = st.sampled_from(
    ["a", "Z", " ", "\n", "\r\n", "/", "!", "1", "\u3000", "\u65e5", "\x1f", "'s", "\u0301"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PIECES, st.integers(1, 3000)), min_size=1, max_size=6), st.integers(1, 3))
def test_any_runs_on_a_small_stack(model: Sardine, runs: list[tuple[str, int]], times: int) -> None:
    """Runs of any kinds after each other stay whole."""
    text = "".join(unit * n for unit, n in runs) * times
    found: list[list[int]] = []
    before = threading.stack_size(192 << 10)
    try:
        t = threading.Thread(target=lambda: found.append(model.tokenize(text, add_bos=False)))
        t.start()
    finally:
        threading.stack_size(before)
    t.join()
    assert model.detokenize(found[0]) == text


def test_one_word_that_is_too_long(model: Sardine) -> None:
    with pytest.raises(ValueError, match="break it up"):
        model.tokenize("a" * (1 << 23))


def test_memory(model: Sardine) -> None:
    """Refused before libllama takes it."""
    _native.pretend_available_memory(10 << 20)
    try:
        with pytest.raises(InsufficientMemory, match="available"):
            model.tokenize("abc " * 100_000)
    finally:
        _native.pretend_available_memory(0)


def test_a_prompt_that_cannot_fit(model: Sardine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused by its length alone."""
    monkeypatch.setattr(model, "tokenize", lambda *_: pytest.fail("it was tokenized"))
    longest = max(len(model.detokenize_bytes([t], special=True)) for t in range(model.n_vocab))
    with pytest.raises(ContextOverflow, match="at least 65 tokens"):
        model.start("a" * (longest * 64 + 1))
    monkeypatch.undo()
    model.start("the " * 30)


SLOW = "some words, and more\n" * 400_000


def test_keyboard_interrupt(example: Path, model: Sardine) -> None:
    """Ctrl-C ends the wait; the process ends in peace while the work goes on; the model goes on too."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        start = time.monotonic()
        model.tokenize(SLOW)
        whole = time.monotonic() - start
        signal.setitimer(signal.ITIMER_REAL, whole / 20)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            model.tokenize(SLOW)
        assert time.monotonic() - start < whole / 2 + 0.5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert model.detokenize(model.tokenize("a fish", add_bos=False)) == "a fish"
    code = """
import os, signal, sys, threading
import sardine_gguf
m = sardine_gguf.Sardine(sys.argv[1], n_ctx=64)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    m.tokenize("some words, and more\\n" * 400_000)
except KeyboardInterrupt:
    print("interrupted")
m.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(example)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_cancel(example: Path) -> None:
    """From another thread, while it waits."""
    with Sardine(example, n_ctx=64) as m:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                m.tokenize(SLOW)
            except BaseException as e:
                raised.append(e)

        t = threading.Thread(target=work)
        t.start()
        while t.is_alive():
            time.sleep(0.02)
            m.cancel()
        t.join()
        assert [type(e) for e in raised] == [Cancelled]
    _native.wait_for_left_work()


def test_a_forked_child_leaves_no_work(example: Path) -> None:
    """Work that the parent left is not the child's to wait for."""
    code = """
import os, signal, sys
import sardine_gguf
m = sardine_gguf.Sardine(sys.argv[1], n_ctx=64, n_threads=1)
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    m.tokenize("some words, and more\\n" * 400_000)
except KeyboardInterrupt:
    pid = os.fork()
    if pid == 0:
        m.tokenize("abc" * 30_000)
        sys.exit(0)
    print(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(example)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
