"""The chat's bookkeeping and what may reach a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from sardine_gguf.chat_loop import Chat
from sardine_gguf.generation import Timings
from sardine_gguf.terminal import Printer, clean


class FakeGeneration:
    """Yields given pieces; an exception among them is raised in its place."""

    def __init__(self, pieces: list[Any]) -> None:
        self._pieces = iter(pieces)
        self.timings = Timings()
        self.finish_reason = "stop"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self

    def __next__(self) -> tuple[str, str]:
        piece = next(self._pieces)
        if isinstance(piece, type) and issubclass(piece, BaseException):
            raise piece
        return piece

    def close(self) -> None:
        pass


class FakeModel:
    """Answers each turn with the next script and remembers the messages it was asked with."""

    def __init__(self, *scripts: list[Any]) -> None:
        self._scripts = iter(scripts)
        self.asked: list[list[dict[str, Any]]] = []
        self.resets = 0

    def start_chat(self, messages: list[dict[str, Any]], **_: Any) -> FakeGeneration:
        self.asked.append([dict(m) for m in messages])
        return FakeGeneration(next(self._scripts))

    def reset(self) -> None:
        self.resets += 1


def chat(model: FakeModel, *lines: Any, system: str | None = None) -> Chat:
    script = iter(lines)

    def read() -> str:
        line = next(script, EOFError)
        if isinstance(line, type):
            raise line
        return line

    c = Chat(model, system=system, read=read, show_stats=False)  # type: ignore[arg-type]
    c.run()
    return c


def test_turns_alternate_and_clear_keeps_the_system_message() -> None:
    model = FakeModel([("content", "one")], [("content", "two")])
    c = chat(model, "a", "/clear", "b", system="be brief")
    system = {"role": "system", "content": "be brief"}
    assert model.asked == [
        [system, {"role": "user", "content": "a"}],
        [system, {"role": "user", "content": "b"}],
    ]
    assert model.resets == 1
    assert c.messages == [
        system,
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "two"},
    ]


def test_interrupted_answer_is_kept_if_there_is_any() -> None:
    c = chat(FakeModel([("content", "par"), ("content", "t"), KeyboardInterrupt]), "a")
    assert c.messages[-1] == {"role": "assistant", "content": "part"}


def test_interrupt_before_the_first_piece_takes_the_question_back() -> None:
    assert chat(FakeModel([KeyboardInterrupt]), "a").messages == []


def test_thoughts_are_kept_apart_from_the_answer() -> None:
    """The next turn's prompt then continues what was evaluated."""
    model = FakeModel([("reasoning", "hm"), ("reasoning", "m"), ("content", "12")], [])
    chat(model, "a", "b")
    assert model.asked[1] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "12", "reasoning_content": "hmm"},
        {"role": "user", "content": "b"},
    ]


def test_an_error_takes_the_question_back_and_the_chat_goes_on() -> None:
    model = FakeModel([ValueError], [("content", "ok")])
    c = chat(model, "a", "b")
    assert [m["content"] for m in c.messages] == ["b", "ok"]


def test_ctrl_c_at_the_prompt_does_not_leave(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel([("content", "x")])
    chat(model, KeyboardInterrupt, "a")
    assert len(model.asked) == 1
    assert "Ctrl-D" in capsys.readouterr().err


def test_clean_keeps_text_and_removes_what_drives_a_terminal() -> None:
    assert clean("naïve ✓ 日本\n\tx") == "naïve ✓ 日本\n\tx"
    for bad in ("\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\u202e"):
        assert not set(clean(bad)) & set("\x1b\x07\x9b\r\x08\u202e")


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_printer_cleans_for_a_terminal_and_passes_on_to_a_pipe() -> None:
    terminal, pipe = FakeTerminal(), io.StringIO()
    for stream in (terminal, pipe):
        printer = Printer(stream, stream)
        printer.write("content", "a\x1b[31mb")
        printer.end()
    assert terminal.getvalue() == "a\ufffd[31mb\n"
    assert pipe.getvalue() == "a\x1b[31mb\n"


def test_printer_dims_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = FakeTerminal()
    printer = Printer(stream, stream)
    printer.write("reasoning", "hmm")
    printer.write("content", "12")
    printer.end()
    assert stream.getvalue() == "\x1b[2mhmm\x1b[0m\n12\n"


def test_printer_hides_thoughts() -> None:
    stream = FakeTerminal()
    printer = Printer(stream, None)
    printer.write("reasoning", "hmm")
    printer.write("content", "12")
    printer.write("reasoning", "more")
    printer.end()
    assert stream.getvalue() == "12\n"
