"""What a saved conversation brings back beside its messages: experts, looks, settings."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sardine_gguf import FormatError, Sardine
from sardine_gguf.chat_loop import Chat
from sardine_gguf.chat_session import Conversation, SessionFile, load_conversation
from sardine_gguf.chat_settings import Looks
from sardine_gguf.cli import main

QUESTION = "What is 15% of 80?"


@pytest.fixture(scope="module")
def loaded(example: Path) -> Iterator[Sardine]:
    with Sardine(example, n_threads=1) as m:
        yield m


def chat(model: Sardine, **options: Any) -> tuple[Chat, io.StringIO]:
    err = io.StringIO()
    settings = {"temperature": 0.0, "max_tokens": 4}
    return Chat(model.new_context(), options=settings, out=io.StringIO(), err=err, **options), err


def test_steering_and_looks_come_back(loaded: Sardine, tmp_path: Path) -> None:
    c, _ = chat(loaded)
    c.ask(QUESTION)
    for line in (
        *("/experts math=3 expert_7=1", "/think hide", "/set markdown on", "/stats off"),
        f"/save {tmp_path / 'c'}",
    ):
        c.take(line)
    other, err = chat(loaded)
    other.take(f"/load {tmp_path / 'c'}")
    assert other.context.experts == {"math": 0.75, "expert_7": 0.25}
    assert other.looks == Looks(thinking=False, markdown=True, timings=False)
    assert err.getvalue() == "(goes on after 1 turn; experts math=0.75 expert_7=0.25)\n"
    assert other.conversation() == load_conversation(tmp_path / "c")
    other.take("/experts code=mute logic=+2")
    other.take(f"/save {tmp_path / 'c'}")
    c.take(f"/load {tmp_path / 'c'}")
    assert c.context.experts == {"logic": "+2", "code": "mute"}


def test_a_session_keeps_them_and_flags_win(loaded: Sardine, tmp_path: Path) -> None:
    file = str(tmp_path / "s")
    c, _ = chat(loaded, session=SessionFile(file))
    c.take("/experts science=1")
    c.save_session()  # also without a turn: something has changed
    assert json.loads(Path(file).read_text())["experts"] == {"science": 1.0}
    again, _ = chat(loaded, session=SessionFile(file))
    assert again.context.experts == {"science": 1.0}
    fixed, _ = chat(loaded, session=SessionFile(file), fixed=("experts", "timings"))
    assert fixed.context.experts == {}


def test_steered_answers_are_those_of_contexts_steered_from_the_start(
    loaded: Sardine, tmp_path: Path
) -> None:
    """/experts, /regen and /load in one chat, beside another on the same weights; all muted is mode off."""

    def fresh(**options: Any) -> str:
        with loaded.new_context(**options) as context:
            return (
                Chat(context, options=settings, out=io.StringIO(), err=io.StringIO())
                .ask(sky)
                .answer
            )

    def again(line: str) -> str:
        c.take(line)
        return c.regenerate().answer

    sky, settings = "Why is the sky blue?", {"temperature": 0.0, "max_tokens": 12}
    c, _ = chat(loaded)
    beside, _ = chat(loaded)
    c.options = beside.options = settings
    free = c.ask(sky).answer
    math, off = fresh(experts={"math": 1}), fresh(delta_mode="off")
    assert len({free, math, off}) == 3
    assert again("/experts math=1") == math
    c.take(f"/save {tmp_path / 'math'}")
    assert beside.ask(sky).answer == free
    assert again("/experts *=mute") == off
    assert beside.regenerate().answer == free
    assert again(f"/load {tmp_path / 'math'}") == math
    assert again("/experts reset") == free
    assert beside.context.experts == loaded.experts == {}


def test_settings_that_a_model_cannot_take_stay_in_the_session(
    loaded: Sardine, tmp_path: Path
) -> None:
    """Who goes on with the base for a turn finds the experts as they were; /experts reset drops them."""
    file = str(tmp_path / "s")
    c, _ = chat(loaded, session=SessionFile(file))
    c.take("/experts science=mute")
    c.save_session()

    def off() -> tuple[Chat, io.StringIO]:
        err = io.StringIO()
        context = loaded.new_context(delta_mode="off")
        options = {"temperature": 0.0, "max_tokens": 4}
        out = io.StringIO()
        return Chat(context, options=options, out=out, err=err, session=SessionFile(file)), err

    base, err = off()
    assert "its experts are not set here" in err.getvalue()
    base.take("/experts")
    assert "mode off; no expert acts" in err.getvalue()
    base.ask(QUESTION)
    base.save_session()
    saved = load_conversation(file)
    assert (len(saved.messages), saved.experts) == (2, {"science": "mute"})
    back, _ = chat(loaded, session=SessionFile(file))
    assert back.context.experts == {"science": "mute"}
    base, _ = off()
    base.take("/experts reset")
    base.save_session()
    assert load_conversation(file).experts == {}


def test_old_files_and_other_models(loaded: Sardine, tmp_path: Path) -> None:
    """A file without these keys changes nothing; experts that the model lacks are told, the messages come."""
    file = tmp_path / "old.json"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    old = {
        "format": "sardine_gguf chat",
        "version": 1,
        "model": "",
        "settings": {},
        "messages": turns,
    }
    file.write_text(json.dumps(old))
    c, err = chat(loaded)
    c.take("/experts math=1")
    c.take(f"/load {file}")
    assert (c.context.experts, c.messages) == ({"math": 1.0}, turns)
    file.write_text(json.dumps({**old, "experts": {"cooking": 1}}))
    c.clear()
    c.take(f"/load {file}")
    assert (c.context.experts, c.messages) == ({"math": 1.0}, turns)
    assert "its experts are not set here: there is no expert 'cooking'" in err.getvalue()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"experts": [1]}, "experts"),
        ({"experts": {"math": None}}, "experts"),
        ({"experts": {"math": True}}, "experts"),
        ({"looks": []}, "looks"),
        ({"looks": {"markdown": 1}}, "looks"),
        ({"looks": {"nothing": True}}, "looks"),
    ],
)
def test_damaged_ones_are_refused(tmp_path: Path, more: dict[str, Any], field: str) -> None:
    file = tmp_path / "c.json"
    good = {"format": "sardine_gguf chat", "version": 1, "settings": {}, "messages": []}
    file.write_text(json.dumps({**good, **more}))
    with pytest.raises(FormatError, match=f"c.json: no saved conversation: {field}: ") as caught:
        load_conversation(file)
    assert caught.value.field == field


def test_bad_settings_name_their_file(loaded: Sardine, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    good = {"format": "sardine_gguf chat", "version": 1, "messages": [], "experts": {"math": 1}}
    file.write_text(json.dumps({**good, "settings": {"temperature": -1}}))
    c, _ = chat(loaded)
    with pytest.raises(
        FormatError, match=r"c\.json: bad settings: temperature cannot be -1"
    ) as caught:
        c.take(f"/load {file}")
    assert caught.value.file == str(file)
    assert c.context.experts == {}
    assert Conversation([]).path == ""


def test_flags_for_experts(
    example: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Empty settings are refused before anything loads; reset leaves a session's."""
    for empty in ("", " ", ","):
        with pytest.raises(SystemExit, match="2"):
            main(["-m", "none.gguf", "-p", "x", "--experts", empty])
        assert "--experts: it is empty, expected NAME=WEIGHT" in capfd.readouterr().err
    file = tmp_path / "s.json"
    args = [
        "-m",
        str(example),
        "-p",
        QUESTION,
        "--temp",
        "0",
        "-t",
        "1",
        "-n",
        "2",
        "--session",
        str(file),
    ]
    assert main([*args, "--experts", "science=1"]) == 0
    assert main(args) == 0
    assert json.loads(file.read_text())["experts"] == {"science": 1.0}
    assert main([*args, "--experts", "reset"]) == 0
    assert json.loads(file.read_text())["experts"] == {}
    capfd.readouterr()
    assert main([*args[:8], "--markdown", "--show-routing"]) == 2
    assert "--markdown renders an answer, --show-routing colours it" in capfd.readouterr().err


def test_markdown_and_colours_exclude_each_other(loaded: Sardine) -> None:
    from sardine_gguf.chat_experts import configure
    from sardine_gguf.cli_flags import build_parser

    c, _ = chat(loaded)
    configure(c, build_parser().parse_args(["--show-routing"]))
    with pytest.raises(ValueError, match="/experts colours turns that off"):
        c.take("/set markdown on")
    c.take("/experts colours")
    c.take("/set markdown on")
    with pytest.raises(ValueError, match="/set markdown off turns that off"):
        c.take("/experts colours")
