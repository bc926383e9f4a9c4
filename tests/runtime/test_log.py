"""What libllama and ggml say goes to the logger "sardine_gguf", and to the terminal only when asked."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from models import TinyModel
from sardine_gguf import Sardine, _log, _native


@pytest.fixture
def records() -> Iterator[list[tuple[int, str]]]:
    """Level and message of every record."""
    out: list[tuple[int, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            out.append((record.levelno, record.getMessage()))

    handler = Keep()
    _log.logger.addHandler(handler)
    old = _log.logger.level
    _log.logger.setLevel(logging.DEBUG)
    yield out
    _log.logger.setLevel(old)
    _log.logger.removeHandler(handler)


def test_lines(records: list[tuple[int, str]]) -> None:
    """Pieces are joined; percent signs are text; the level is that of the line's beginning."""
    for level, text in (
        (3, "a "),
        (5, "b"),
        (5, " 100%s\n"),
        (4, "c"),
        (2, "d\n"),
        (1, "\n"),
        (0, "e\n"),
    ):
        _log._receive(level, text)
    assert records == [
        (logging.WARNING, "a b 100%s"),
        (logging.ERROR, "c"),
        (logging.DEBUG, "d"),
        (logging.DEBUG, "e"),
    ]


def test_loading_a_model(
    tiny: TinyModel, records: list[tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """libllama reads the vocabulary, and says so to the logger alone."""
    with Sardine(tiny.gguf):
        pass
    assert any("vocab" in text for _, text in records)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", ["", "import llama_cpp; "], ids=["alone", "after_llama_cpp"])
def test_nothing_is_printed(tiny: TinyModel, first: str) -> None:
    """Also in a process that configured no logging, and beside llama_cpp, whose handler stays its own."""
    code = f"""{first}import sys, sardine_gguf
with sardine_gguf.Sardine(sys.argv[1]) as m:
    m.generate("a", max_tokens=2)
import llama_cpp
with sardine_gguf.Sardine(sys.argv[1]) as m:
    m.generate("a", max_tokens=2)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tiny.gguf)], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_failing_handler_breaks_nothing(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception goes where Python sends those that nobody can catch."""
    failures: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: failures.append(u.exc_value))

    def fail(level: int, text: str) -> None:
        raise RuntimeError(text)

    _native.set_logger(fail, False)
    try:
        with Sardine(tiny.gguf) as m:
            assert m.generate("a", max_tokens=2, temperature=0) is not None
    finally:
        _log.connect()
    assert failures
    assert all(isinstance(f, RuntimeError) for f in failures)


def test_a_handler_that_loads_a_model(tiny: TinyModel) -> None:
    """Or that waits for a thread that does: no lock is held while a handler runs."""
    code = """
import logging, sys, threading
from sardine_gguf import Sardine
depth = 0
class Load(logging.Handler):
    def emit(self, record):
        global depth
        if depth == 0:
            depth += 1
            Sardine(sys.argv[1]).close()
            t = threading.Thread(target=lambda: Sardine(sys.argv[1]).close())
            t.start()
            t.join()
            print("loaded")
logger = logging.getLogger("sardine_gguf")
logger.setLevel(logging.DEBUG)
handler = Load()
handler.createLock = lambda: None
handler.lock = None
logger.addHandler(handler)
Sardine(sys.argv[1]).close()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tiny.gguf)], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "loaded\n", "")
