"""Parts of the chat that need no terminal: commands, settings, files, completion, lines."""

from __future__ import annotations

import io
import json
import os
import string
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console
from rich.markdown import Markdown
from sardine_gguf import cli, routing_cli
from sardine_gguf.chat_commands import Commands, split_command
from sardine_gguf.chat_commands_all import COMMANDS
from sardine_gguf.chat_session import (
    Conversation,
    SessionFile,
    checked_messages,
    load_conversation,
    save_conversation,
)
from sardine_gguf.chat_settings import SETTINGS, checked_settings, parsed, setting
from sardine_gguf.chat_stats import stats_parts, stats_table
from sardine_gguf.chat_turn import Turn
from sardine_gguf.cli_environment import FLAGS, SWITCHES, with_environment
from sardine_gguf.cli_flags import build_parser, logit_bias
from sardine_gguf.composing import is_complete, message, simple_reader
from sardine_gguf.errors import FormatError
from sardine_gguf.expert_view import ExpertColours
from sardine_gguf.file_help import hint
from sardine_gguf.first_minute import load_model, without_model
from sardine_gguf.generation import Timings
from sardine_gguf.line_editor import ChatCompleter, open_history
from sardine_gguf.markdown_view import MarkdownPrinter, finished
from sardine_gguf.model_facts import model_name, names_text
from sardine_gguf.options import GenerationOptions
from sardine_gguf.system_prompt import prepared, with_instructions
from sardine_gguf.terminal import clean
from sardine_gguf.text_files import read_text_file
from sardine_gguf.waiting import Waiting

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "naïve 🐟?"},
    {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"},
]


# ---- commands ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/help", ("/help", "")),
        ("  /Set temp  0.5 ", ("/set", "temp  0.5")),
        ("/?", ("/?", "")),
        ("/system two\nlines", ("/system", "two\nlines")),
        ("/what two\nlines", None),
        ("/home/me/x.py is what?", None),
        ("//help", None),
        ("hello /help", None),
        ("/", None),
        ("1/2", None),
    ],
)
def test_what_is_a_command(text: str, expected: tuple[str, str] | None) -> None:
    assert split_command(text, COMMANDS) == expected


def test_registry() -> None:
    commands = Commands()

    @commands.add("/one", "/o", summary="first")
    def one(chat: Any, text: str) -> None: ...

    assert commands.find("/o").run is one
    assert [c.names for c in commands] == [("/one", "/o")]
    with pytest.raises(ValueError, match="did you mean /one"):
        commands.find("/onee")
    for name in ("/one", "two", "/two words"):
        with pytest.raises(ValueError, match="is taken, or no slash"):
            commands.add(name, summary="")(one)


# ---- settings ----


def test_every_setting_is_an_option_and_has_a_flag_of_its_name() -> None:
    flags = {s for a in build_parser()._actions for s in a.option_strings}
    for s in SETTINGS:
        assert setting(s.name) is s
        if s.name not in ("thinking", "markdown", "timings"):
            assert s.name in GenerationOptions.__annotations__
        for name in s.flags:
            assert f"--{name.replace('_', '-')}" in flags
    assert setting("--repeat-penalty").name == "repeat_penalty"
    assert setting("Top-K").name == "top_k"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temp", "-1"), ("temp", "nan"), ("temp", "warm"), ("top_p", "2"), ("top_k", "1.5"),
        ("seed", "5000000000"), ("max_tokens", "-2"), ("reasoning_budget", "-2"), ("mirostat", "3"),
        ("markdown", "maybe"),
    ],
)  # fmt: skip
def test_settings_out_of_range(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{setting(name).name} cannot be"):
        parsed(setting(name), text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("temp", "a number"), ("top_k", "a whole number"), ("seed", "a whole number")],
)
def test_what_is_no_number_is_said_in_words(name: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be warm: expected {expected}$"):
        parsed(setting(name), "warm")


def test_saved_settings_are_checked() -> None:
    assert checked_settings({"temperature": 0.5, "max_tokens": None}) == {
        "temperature": 0.5,
        "max_tokens": None,
    }
    for bad in ({"temperature": "x"}, {"markdown": True}, {"top_k": [1]}, {"nothing": 1}):
        with pytest.raises(ValueError, match=r"cannot be|there is no|no generation option"):
            checked_settings(bad)


# ---- files ----


def test_a_conversation_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    given_one = Conversation(TURNS, {"temperature": 0.5}, "model")
    save_conversation(file, given_one)
    assert load_conversation(file) == given_one
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]  # nothing temporary is left


_TEXT = st.text(max_size=20)


@given(st.lists(st.tuples(_TEXT, _TEXT), max_size=4), st.none() | _TEXT.filter(bool))
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]], system: str | None
) -> None:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    file = tmp_path_factory.getbasetemp() / "any.json"
    save_conversation(file, Conversation(messages))
    assert load_conversation(file).messages == messages


GOOD = {"format": "sardine_gguf chat", "version": 1, "settings": {}, "messages": TURNS}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("", ""),
        ("[1", ""),
        ("[" * 100_000, ""),
        (b"\xff\xfe", ""),
        ("[]", "format"),
        ({**GOOD, "format": "other"}, "format"),
        ({**GOOD, "version": 2}, "version"),
        ({**GOOD, "settings": []}, "settings"),
        ({**GOOD, "model": 3}, "model"),
        ({**GOOD, "messages": None}, "messages"),
        ({**GOOD, "messages": ["hi"]}, "messages"),
        ({**GOOD, "messages": [*TURNS, TURNS[2]]}, "messages"),
        ({**GOOD, "messages": TURNS[:2]}, "messages"),
        ({**GOOD, "messages": [TURNS[1], TURNS[2], TURNS[0]]}, "messages"),
        ({**GOOD, "messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({**GOOD, "messages": [{"role": "user", "content": 3}]}, "messages"),
        ({**GOOD, "messages": [{"role": "user"}]}, "messages"),
    ],
)
def test_damaged_conversations_are_refused(tmp_path: Path, document: Any, field: str) -> None:
    file = tmp_path / "c.json"
    data = document if isinstance(document, str | bytes) else json.dumps(document)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(FormatError, match="no saved conversation") as caught:
        load_conversation(file)
    assert (caught.value.file, caught.value.field) == (str(file), field)
    assert "\n" not in str(caught.value)


def test_a_session_that_another_program_changed_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    mine = SessionFile(str(file))
    assert mine.start is None
    mine.save(Conversation(TURNS))
    mine.save(Conversation(TURNS[1:]))
    file.write_text("someone else's")
    with pytest.raises(FormatError, match="another program has changed it"):
        mine.save(Conversation(TURNS))
    assert file.read_text() == "someone else's"
    with pytest.raises(OSError, match=r"folder|directory"):
        SessionFile(str(tmp_path / "nowhere" / "s.json"))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.json"
    save_conversation(file, Conversation(TURNS))
    before = file.read_bytes()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        save_conversation(file, Conversation(TURNS[:1]))
    monkeypatch.undo()
    assert caught.value.filename == str(file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_checked_messages_drops_what_is_not_the_chats() -> None:
    extra = [{**TURNS[1], "name": "me"}, {"role": "assistant", "content": "x", "tool_calls": []}]
    assert checked_messages(extra) == [TURNS[1], {"role": "assistant", "content": "x"}]


def test_text_files(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve")
    assert read_text_file(file) == "naïve"
    with pytest.raises(FormatError, match="more than 0 MiB"):
        read_text_file(file, limit=3)
    file.write_bytes(b"abc\xff")
    with pytest.raises(FormatError, match="byte 3 is not UTF-8"):
        read_text_file(file)


def test_text_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules as for files: it may be endless, or no text."""

    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), errors="replace"))

    given(b"\xef\xbb\xbfna\xc3\xafve\r\n")
    assert read_text_file("-") == "naïve\n"
    given(b"abc\xff")
    with pytest.raises(FormatError, match="standard input: byte 3 is not UTF-8"):
        read_text_file("-")
    given(b"abcd")
    with pytest.raises(FormatError, match="standard input: more than 0 MiB"):
        read_text_file("-", limit=3)


# ---- typing ----


def read_all(text: str, **options: Any) -> list[str]:
    read = simple_reader(stdin=io.StringIO(text), err=io.StringIO(), **options)
    out = []
    while True:
        try:
            out.append(read())
        except EOFError:
            return out


def test_lines_without_an_editor() -> None:
    assert read_all("a\nb\n") == ["a", "b"]
    assert read_all("a\\\nb\nc") == ["a\nb", "c"]
    assert read_all('"""a\n\nb"""\nc\n') == ["a\n\nb", "c"]
    assert read_all('"""\na\\\nb\n"""\n') == ["a\\\nb"]
    assert read_all("a\nb\n\n/help\nc\n", multiline=True) == ["a\nb\n", "/help", "c"]
    assert read_all("a\\") == ["a"]  # the end of the input in the middle of a message


def test_when_enter_sends() -> None:
    assert is_complete("hello")
    assert not is_complete("hello\\")
    assert not is_complete('"""hello')
    assert is_complete('"""hello"""')
    assert message('"""a\nb"""') == "a\nb"
    assert message('"""a\nb""" and more') == '"""a\nb""" and more'
    assert message("plain \\\ncode") == "plain \\\ncode"


class FakeChat:
    """What completion looks at."""

    class context:
        expert_names = ("math", "logic")


def complete(text: str) -> list[str]:
    completer = ChatCompleter(FakeChat())  # type: ignore[arg-type]
    found = completer.get_completions(Document(text, len(text)), CompleteEvent())
    return [text[: len(text) + c.start_position] + c.text for c in found]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete("/re") == ["/regen", "/read"]
    assert complete("/set top") == ["/set top_k", "/set top_p"]
    assert complete("/think s") == ["/think show"]
    assert complete("hello /re") == []
    assert complete("/regen x") == []
    assert complete("/nothing x") == []
    (tmp_path / "talk.json").touch()
    monkeypatch.chdir(tmp_path)
    assert complete("/load ta") == ["/load talk.json"]
    assert complete(f"/save {tmp_path}/t") == [f"/save {tmp_path}/talk.json"]


def test_history_is_private_and_never_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "history"
    history = open_history(path)
    history.append_string("two\nlines")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(open_history(path).load_history_strings()) == ["two\nlines"]
    path.unlink()
    path.mkdir()  # cannot be written any more
    history.append_string("later")
    assert history.get_strings()[-1] == "later"
    open_history(path).append_string("in memory")
    open_history(None).append_string("in memory")


# ---- showing ----


@given(st.text(alphabet=string.printable + "\x1b\x9b\x07\u202e\u2066é日🐟", max_size=60))
def test_clean_leaves_nothing_that_drives_a_terminal(text: str) -> None:
    shown = clean(text)
    assert len(shown) == len(text)
    assert not set(shown) & (
        {chr(c) for c in (*range(32), *range(0x7F, 0xA0))} - {"\n", "\t"} | set("\u202e\u2066")
    )
    assert all(a == b for a, b in zip(text, shown, strict=True) if b != "\ufffd")


MARKDOWN = "# T\n\ntext *a*\nmore\n\n```py\nx\n\n\ny\n```\n\n1. one\n2. two\n\nend"


def test_finished_blocks_of_markdown() -> None:
    assert finished("") == finished("para") == finished("para\n") == 0
    assert finished("para\n\nnext") == 6
    assert finished("```\na\n\nb\n") == 0
    assert finished("```\na\n\n```\n\nb") == len("```\na\n\n```\n\n")
    assert finished("~~~\n```\n\n~~~\n\nb") == len("~~~\n```\n\n~~~\n\n")


@given(st.lists(st.integers(1, 12), max_size=20))
def test_markdown_in_pieces_shows_what_the_whole_shows(cuts: list[int]) -> None:
    """However the pieces fall. Only the empty lines between blocks may differ."""

    class Out(io.StringIO):
        def isatty(self) -> bool:
            return False  # no live region: what stays is compared

    out = Out()
    printer = MarkdownPrinter(out, None, colour="off")
    rest = MARKDOWN
    for n in cuts:
        printer.write("content", rest[:n])
        rest = rest[n:]
    printer.write("content", rest)
    printer.end()
    whole = Out()
    Console(file=whole, no_color=True, highlight=False).print(Markdown(MARKDOWN))

    def lines(stream: io.StringIO) -> list[str]:
        return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]

    assert lines(out) == lines(whole)


class FakeTerminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_waiting_shows_a_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = FakeTerminal()
    with Waiting("load\x1b[31ming", stream=stream, after=0.0, every=0.001) as waiting:
        while "ing 0 s" not in stream.getvalue():
            time.sleep(0.001)
        waiting.stop()
        shown = stream.getvalue()
        assert shown.endswith("\r\x1b[K")
        assert "\x1b[31m" not in shown
    assert stream.getvalue() == shown
    pipe = io.StringIO()
    with Waiting("x", stream=pipe, after=0.0):
        time.sleep(0.01)
    assert pipe.getvalue() == ""
    quick = FakeTerminal()
    with Waiting("x", stream=quick, after=3600):
        pass
    assert quick.getvalue() == ""


def test_loading_shows_a_line_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that waits until its line is there, with how much is done, and warns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", FakeTerminal())
    stream = sys.stderr

    def slow(tell: Callable[[float], None]) -> Any:
        while "loading m.gguf 1 s" not in stream.getvalue():  # type: ignore[attr-defined]
            time.sleep(0.01)
        tell(0.429)
        while "loading m.gguf 42% " not in stream.getvalue():  # type: ignore[attr-defined]
            time.sleep(0.01)
        warnings.warn("odd\x1b[31m norms", stacklevel=1)
        return "model"

    assert load_model(slow, "/x/m.gguf") == "model"  # type: ignore[comparison-overlap]
    shown = stream.getvalue()  # type: ignore[attr-defined]
    assert shown.endswith("\r\x1b[Ksardine-cli: warning: odd\ufffd[31m norms\n")


@pytest.mark.parametrize("program", [cli, routing_cli])
def test_programs_tell_how_much_is_loaded(
    program: Any, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the native loading tells reaches the line, from 0 to 1."""
    told: list[float] = []
    monkeypatch.setattr(Waiting, "progress", lambda _, fraction: told.append(fraction))
    more = ["-n", "1"] if program is cli else ["-o", str(tmp_path / "r.html")]
    assert program.main(["-m", str(model_file), "-p", "a", *more]) == 0
    assert told[0] == 0.0
    assert told[-1] == 1.0
    assert told == sorted(told)
    assert len(told) >= 5


def test_names_that_do_not_fit_are_counted() -> None:
    names = ["math", "logic", "code"]
    assert names_text(names, 0) == names_text(names, 17) == "math, logic, code"
    assert names_text(names, 16) == "math, 2 more"
    assert names_text(names, 1) == "math, 2 more"
    assert names_text([], 5) == ""


# ---- flags ----


def test_logit_bias() -> None:
    assert logit_bias("15043+1") == (15043, 1.0)
    assert logit_bias("15043-1.5") == (15043, -1.5)
    assert logit_bias("7-inf") == (7, float("-inf"))
    for bad in ("15043", "+1", "a+1", "1+b", ""):
        with pytest.raises(ValueError, match=r"."):
            logit_bias(bad)


def test_the_environment_has_flags_that_exist() -> None:
    flags = {s for a in build_parser()._actions for s in a.option_strings}
    assert {*FLAGS.values(), *(s for pair in SWITCHES.values() for s in pair)} <= flags
    env = {"LLAMA_ARG_MODEL": "m.gguf", "LLAMA_ARG_TOP_K": "-1", "OTHER": "x"}
    assert with_environment(["-p", "x"], env) == ["--model=m.gguf", "--top-k=-1", "-p", "x"]
    assert with_environment(["--example"], env) == ["--top-k=-1", "--example"]
    args = build_parser().parse_args(with_environment(["--top-k", "3"], env))
    assert (args.model, args.top_k) == ("m.gguf", 3)


# ---- files that are no model ----


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("m.gguf", b"", "did the download stop"),
        ("m.gguf", b"<!DOCTYPE html><html>", "this is a web page"),
        ("m.gguf", b"\n <html>", "this is a web page"),
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("m.gguf", b"\x10\0\0\0\0\0\0\0{\"a\":1}", "convert-sardine --base"),
        ("model.safetensors", b"xxxxxxxxxx", "convert-sardine --base"),
        ("srde_weights.pt", b"PK\x03\x04", "PyTorch checkpoint"),
        ("m.gguf", b"\x1f\x8b\x08", "compressed"),
        ("m.bin", b"tjgg", "before GGUF"),
        ("m.gguf", b"something", "downloaded whole"),
        ("m.gguf", b"GGUF\x03", ""),
    ],
)  # fmt: skip
def test_hints_about_contents(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    found = hint(str(tmp_path / name))
    assert expected in found
    assert (found == "") == (expected == "")


def test_hints_about_names(tmp_path: Path) -> None:
    model = tmp_path / "Sardine-14B-q4_k_m.gguf"
    model.write_bytes(b"GGUF")
    for near in ("sardine-14b-q4_k_m.gguf", "Sardine-14B-q4_k_m", "Sardine-14B-q4_0.gguf"):
        assert hint(str(tmp_path / near)) == f"did you mean {model}?"
    assert hint(str(tmp_path / "zzz")) == f"GGUF files in {tmp_path}: {model.name}"
    assert "there is no folder" in hint(str(tmp_path / "no" / "m.gguf"))
    assert hint(str(tmp_path)) == f"name a file in it: {model}"
    folder = tmp_path / "hf"
    folder.mkdir()
    assert hint(str(folder)) == "expected a GGUF file"
    (folder / "srde_weights.pt").touch()
    assert "PyTorch checkpoint" in hint(str(folder))
    (folder / "model-00001.safetensors").touch()
    assert f"convert-sardine --base {folder}" in hint(str(folder))
    os.mkfifo(tmp_path / "pipe")
    assert hint(str(tmp_path / "pipe")) == ""
    assert "download it first" in hint("https://example.org/m.gguf")
    assert hint(str(folder / "none")) == ""


# ---- system messages ----


def test_instructions_to_think_follow_a_system_message() -> None:
    own = "Think first.\n[THINK]draft[/THINK]Then answer."
    blocks = with_instructions("Be brief.", own)
    assert blocks == [
        {"type": "text", "text": "Be brief.\n\nThink first.\n"},
        {"type": "thinking", "thinking": "draft"},
        {"type": "text", "text": "Then answer."},
    ]
    assert prepared(TURNS, own)[0]["content"] == blocks
    assert prepared(TURNS, None) == TURNS
    assert prepared(TURNS[1:], own) == TURNS[1:]
    assert TURNS[0]["content"] == "Be brief."  # what is saved is what was typed


def rendered(text: str) -> str:
    """What --markdown shows, without white space."""
    out = io.StringIO()
    printer = MarkdownPrinter(out, None, colour="off")
    printer.write("content", text)
    printer.end()
    return "".join(out.getvalue().split())


# Words, and no character that is Markdown's own but those of HTML.
PLAIN = st.text("abXY äß(<>/!?.,'\"$%&{\n", min_size=1).map(
    lambda text: "\n".join(line.lstrip("> ") for line in text.split("\n"))
)


@given(PLAIN)
@example("<vector> of int")
@example("a <b>bold</b> word")
@example("<div>\na\n</div>\n\n<!-- b -->\n<?c?>\n<script>\nd\n</script>")
@example("std::vector<int> v;\ntemplate<class T>")
@example("[a]: b")
def test_markdown_loses_no_character(text: str) -> None:
    assert rendered(text) == "".join(text.split())


@pytest.mark.parametrize("exists", [False, True])
def test_a_session_in_a_read_only_folder_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exists: bool
) -> None:
    path = tmp_path / "s.json"
    if exists:
        save_conversation(path, Conversation())
    SessionFile(str(path))
    real = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda p, mode: not mode & os.W_OK and real(p, mode))
    with pytest.raises(PermissionError, match="a session cannot be saved in this folder"):
        SessionFile(str(path))


@pytest.mark.parametrize("exists", [False, True])
def test_a_session_through_a_link_keeps_the_link(tmp_path: Path, exists: bool) -> None:
    folder, link = tmp_path / "elsewhere", tmp_path / "s.json"
    folder.mkdir()
    link.symlink_to(folder / "real.json")
    talk = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    if exists:
        save_conversation(folder / "real.json", Conversation())
    session = SessionFile(str(link))
    session.save(talk)
    session.save(talk)
    assert link.is_symlink()
    assert load_conversation(folder / "real.json") == talk
    assert [p.name for p in folder.iterdir()] == ["real.json"]


def test_a_context_length_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_parser().parse_args(["-c", "auto"]).ctx_size == "auto"
    assert build_parser().parse_args(["-c", "64"]).ctx_size == 64
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["-c", "abc"])
    assert "-c/--ctx-size: 'abc' is no number of tokens, nor auto" in capsys.readouterr().err


def test_a_name_that_says_nothing_gives_way_to_the_files() -> None:
    path = Path("/x/tiny-sardine.gguf")
    for nothing in (None, "", " ", "Base", "model", 3):
        assert model_name(nothing, path) == "tiny-sardine"
    assert model_name("Ministral 3\x1b[31m\nred", path) == "Ministral 3\ufffd[31m\ufffdred"


def test_the_start_proposes_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kind in (("a.gguf", b"adapter"), ("b.gguf", b"model")):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(20) + b"general.type" + bytes(12) + kind)
    assert "-m b.gguf" in without_model()


def test_names_cannot_drive_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a file which the start proposes, and those of experts."""
    (tmp_path / "a\x1b]0;x\x07 b\n.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    said = without_model()
    assert "sardine-cli -m 'a\ufffd]0;x\ufffd b\ufffd.gguf'" in said
    assert len(said.splitlines()) == 3
    colours = ExpertColours(["a\x1b[31m", "b\n\tc"])
    table = colours.table({}, {"b\n\tc": "mute"}, colour=False)
    assert table[1].endswith("b\ufffd\ufffdc    mute")
    assert "\x1b" not in "".join(table)


def test_stats_of_a_turn_that_was_stopped_in_its_prompt() -> None:
    """No rate is told of what was not done."""

    class Stopped:
        timings = Timings(prompt_tokens=120_000)

    class Context:
        n_tokens, n_ctx = 512, 400_000

    turn = Turn(Stopped(), interrupted=True)  # type: ignore[arg-type]
    assert stats_parts(turn, Context(), ["math 0 %"]) == [
        "[120,000 prompt tokens, not read to the end", "context 512/400000]",
    ]  # fmt: skip
    table = stats_table(turn, Context(), ["math 0 %"])
    assert "120,000 tokens, stopped before all of them were read" in table
    assert "t/s" not in table
    assert "math" not in table
