"""The chat's bookkeeping and what may reach a terminal."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sardine_gguf.chat_loop import Chat
from sardine_gguf.chat_session import Conversation
from sardine_gguf.chat_settings import Looks
from sardine_gguf.errors import FormatError
from sardine_gguf.generation import Timings
from sardine_gguf.sampling import SamplingOptions
from sardine_gguf.terminal import Printer, clean


class FakeGeneration:
    """Yields given pieces; an exception among them is raised in its place."""

    def __init__(self, pieces: list[Any]) -> None:
        self._pieces = iter(pieces)
        self.timings = Timings()
        self.finish_reason = "stop"
        self.on_evaluated: Any = None

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

    metadata: ClassVar = {"general.name": "fake"}
    n_tokens, n_ctx = 1, 10
    expert_names: ClassVar[list[str]] = []

    def __init__(self, *scripts: list[Any], seed: int = -1) -> None:
        self._scripts = iter(scripts)
        self.asked: list[list[dict[str, Any]]] = []
        self.options: list[dict[str, Any]] = []
        self.sampling = SamplingOptions(seed=seed)
        self.resets = 0

    def start_chat(
        self, messages: list[dict[str, Any]], *, think_prompt: bool | None = None, **options: Any
    ) -> FakeGeneration:
        assert (
            think_prompt is False
        )  # the chat itself puts what asks for thoughts after a system message
        self.asked.append([dict(m) for m in messages])
        self.options.append(options)
        self.last = FakeGeneration(next(self._scripts))
        return self.last

    def reset(self) -> None:
        self.resets += 1


def chat(model: FakeModel, *lines: Any, system: str | None = None) -> Chat:
    script = iter(lines)

    def read() -> str:
        line = next(script, EOFError)
        if isinstance(line, type):
            raise line
        return line

    c = Chat(model, system=system, read=read, looks=Looks(timings=False))  # type: ignore[arg-type]
    c.loop()
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


def test_no_answer_takes_the_question_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(FakeModel([("reasoning", "hm")]), "a").messages == []
    assert "(no answer: the message is taken back)" in capsys.readouterr().err


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


def test_an_answer_is_given_anew_with_another_seed() -> None:
    model = FakeModel([("content", "one")], [("content", "two")], [KeyboardInterrupt], seed=5)
    c = chat(model, "/regen", "a", "/regen", "/regen")
    assert model.asked == [[{"role": "user", "content": "a"}]] * 3
    assert [o.get("seed") for o in model.options] == [None, 6, 7]
    assert [m["content"] for m in c.messages] == ["a", "two"]  # nothing new came the last time


def test_a_file_waits_for_the_next_message_that_is_answered(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("text")
    model = FakeModel([KeyboardInterrupt], [("content", "ok")], [("content", "ok")])
    c = chat(model, f"/read {tmp_path / 'f.txt'}", "a", "b", "c")
    assert [m["content"] for m in c.messages] == ["text\n\nb", "ok", "c", "ok"]


@pytest.mark.parametrize("name", ["-", "pipe", "terminal"])
def test_what_is_no_file_is_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading the terminal, or a pipe that nobody writes to, would wait without an end."""
    keys, screen = os.openpty()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("sys.stdin", io.StringIO("the next message"))
    device = os.ttyname(screen) if name == "terminal" else name
    name = str(tmp_path / "pipe") if name == "pipe" else device
    c = chat(FakeModel(), f"/read {name}")
    os.close(keys)
    os.close(screen)
    assert c.attached == []
    assert f"{name}: this is no regular file" in capsys.readouterr().err


def test_the_system_message_changes_in_the_middle() -> None:
    model = FakeModel([("content", "one")], [("content", "two")])
    c = chat(model, "a", "/system be brief", "b", "/system none")
    assert model.asked[1][0] == {"role": "system", "content": "be brief"}
    assert [m["role"] for m in c.messages] == ["user", "assistant"] * 2


def test_two_slashes_send_one() -> None:
    model = FakeModel([("content", "one")], [("content", "two")])
    chat(model, "//help", "/usr/bin is what?", "/usr")
    assert [m[-1]["content"] for m in model.asked] == ["/help", "/usr/bin is what?"]


def test_settings_reach_the_model_and_the_file() -> None:
    model = FakeModel([("content", "one")])
    c = chat(model, "/set temp 0.5", "/set max-tokens 7", "/set top_k x", "a")
    assert model.options == [{"temperature": 0.5, "max_tokens": 7}]
    assert c.conversation() == Conversation(
        c.messages,
        {"temperature": 0.5, "max_tokens": 7},
        "fake",
        None,
        {"thinking": True, "markdown": False, "timings": False},
    )


def test_resuming_takes_all_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    c = chat(FakeModel([("content", "one")]), "a")
    with pytest.raises(FormatError, match="bad settings"):
        c.resume(Conversation([], {"temperature": -3}))
    assert len(c.messages) == 2
    c.resume(Conversation([], {"temperature": 0.5}, "other"), {"temperature": 1})
    assert (c.messages, c.options) == ([], {"temperature": 1})
    assert "held with other" in capsys.readouterr().err


def test_hooks_see_every_evaluation_and_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What colours tokens by their experts hangs on these."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = FakeTerminal()
    model = FakeModel([("reasoning", "hm"), ("content", "on"), ("content", "e")])
    c = Chat(model, out=out)  # type: ignore[arg-type]
    events: list[str] = []
    c.before_turn.append(lambda: events.append("before"))
    c.on_evaluated.append(lambda tokens, routes: events.append(f"{len(tokens)} tokens"))
    c.after_turn.append(lambda turn: f"legend of {turn.answer}")
    c.stats_parts.append(lambda turn: "math 90 %")
    c.piece_style = lambda: "\x1b[31m"
    c.ask("a")
    assert model.last.on_evaluated is not None
    model.last.on_evaluated([1, 2], None)
    assert events == ["before", "2 tokens"]
    assert out.getvalue() == (
        "\x1b[2m\x1b[31mhm\x1b[0m\x1b[2m\x1b[0m\n\x1b[31mon\x1b[0m\x1b[31me\x1b[0m\n"
    )
    notes = capsys.readouterr().err.splitlines()
    assert notes[0] == "legend of one"
    assert notes[1].endswith("| math 90 %]")


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
