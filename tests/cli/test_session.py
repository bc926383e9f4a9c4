"""Whole sessions of sardine-cli on terminals: every command and every key, Ctrl-C included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from screens import Emulated, Terminal

ANSWER = "15% of 80 is 12."
COMMANDS = (
    *("/regen", "/system", "/read", "/clear", "/save", "/load", "/set", "/show"),
    *("/stats", "/think", "/experts", "/help", "/exit"),
)
QUESTION = "What is 15% of 80?"
Start = Callable[..., Terminal]


def test_every_command(terminal: Start, example: Path, tmp_path: Path) -> None:
    t = terminal("-m", example, "--temp", 0, "-t", 1)
    begin = t.wait_for_prompt()
    assert re.search(r"model: .*mistral3.*q8_0, [\d.]+ MB, tiny-sardine.gguf", begin)
    assert "experts: 8, 2 a token, in 4 of 4 layers (math, logic" in begin
    assert re.search(r"runs: .*sparse on the CPU, 1 thread, context of 2048 tokens", begin)

    shown = t.say(QUESTION)
    assert ANSWER in shown
    assert re.search(
        r"\[14 prompt tokens, [\d.]+ t/s \| first [\d.]+ s \| \d+ tokens, [\d.]+ t/s \| "
        r"context \d+/2048 \| math \d+ %\]",
        shown,
    )
    assert "cached" in t.say("And 25%?")  # the second turn evaluates only what is new

    helped = t.say("/help")
    places = [helped.index(f"\n{command}") for command in COMMANDS]
    assert places == sorted(places)
    assert "/regen" in t.say("/?")

    assert "first token" in t.say("/stats")
    assert "is off" in t.say("/stats off")
    assert "t/s" not in t.say("/regen").removeprefix("> /regen")
    assert "is on" in t.say("/stats on")

    assert "temperature is 0.0" in t.say("/set temp")
    assert "(temperature is 0.7)" in t.say("/set temp 0.7")
    assert "temperature cannot be -1" in t.say("/set temp -1")
    assert "did you mean top_k?" in t.say("/set top_kk 3")
    assert "* temperature        0.7" in t.say("/show")
    assert "(temperature is 0.8)" in t.say("/set temp default")
    t.say("/set temp 0")
    t.say("/set max-tokens 3")
    assert "(cut: max tokens)" in t.say(QUESTION)
    t.say("/set max-tokens default")

    assert "(no system message)" in t.say("/system")
    t.say("/system Be brief.")
    assert "Be brief." in t.say("/show system")
    assert "system: Be brief." in t.say("/show messages")
    assert "mistral3" in t.say("/show model")
    assert "[INST]" in t.say("/show template")
    assert "no system message" in t.say("/system none")

    assert "thoughts are hidden" in t.say("/think hide")
    assert "(no thoughts)" in t.say("/think off")
    assert "at most 5 tokens" in t.say("/think 5")
    t.say("/think on")
    assert "shown, no limit" in t.say("/think show")

    assert re.search(r"0 math +[\d.]+ % +[\d.]+ %", t.say("/experts"))
    t.say("/clear")
    assert "(science=1)" in t.say("/experts science=1")
    assert ANSWER not in t.say(QUESTION)
    assert re.search(r"3 science +100.0 % +100.0 % +1", t.say("/experts"))
    assert "did you mean 'math'" in t.say("/experts mth=1")
    assert "(the router chooses; the conversation is read again)" in t.say("/experts reset")
    t.say("/clear")
    assert ANSWER in t.say(QUESTION)
    t.say("And 25%?")
    t.say(QUESTION)

    saved = tmp_path / "talk.json"
    assert "(saved to" in t.say(f"/save {saved}")
    assert "is the input" in t.say(f"/save {example}")
    assert "not a regular file" in t.say("/save /dev/null")
    document = json.loads(saved.read_text())
    assert document["messages"][0] == {"role": "user", "content": QUESTION}
    assert "forgotten" in t.say("/clear")
    assert "(no messages)" in t.say("/show messages")
    assert "goes on after 3 turns" in t.say(f"/load {saved}")
    assert f"user: {QUESTION}" in t.say("/show messages")
    assert "No such file" in t.say("/load nowhere.json")

    t.say("/clear")
    (tmp_path / "note.txt").write_text("The key is in the bag.")
    assert "22 characters of note.txt" in t.say(f"/read {tmp_path / 'note.txt'}")
    t.say("Where is it?")
    assert "The key is in the bag." in t.say("/show messages")

    assert "there is no command /nonsense" in t.say("/nonsense")
    assert "takes nothing" in t.say("/clear now")
    t.send("/exit")
    t.key("Enter")
    assert t.wait_for_exit() == 0
    history = tmp_path / "state" / "sardine_gguf" / "history"
    assert QUESTION in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("leave", ["/bye", "/quit"])
def test_aliases_of_exit(emulated: Callable[..., Emulated], model_file: Path, leave: str) -> None:
    t = emulated("-m", model_file, "-t", 1)
    t.wait_for_prompt()
    t.send(leave)
    t.key("Enter")
    assert t.wait_for_exit() == 0


def test_keys(terminal: Start, example: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'from the editor' > \"$1\"\n")
    editor.chmod(0o755)
    (tmp_path / "a story.txt").write_text("Once.")
    t = terminal(
        "-m", example, "--temp", 0, "-t", 1, "-n", 4, env={"EDITOR": str(editor), "VISUAL": ""}
    )
    t.wait_for_prompt()

    t.send("one")
    t.key("M-Enter")  # a new line
    t.send("two")
    t.key("Enter")
    t.wait_for("t/s", 1)
    assert "user: one\ntwo" in _plain(t.say("/show messages"))

    t.say("/clear")
    t.send("three\\")
    t.key("Enter")
    t.send("four")
    t.key("Enter")
    t.wait_for("t/s", 2)
    assert "user: three\nfour" in _plain(t.say("/show messages"))

    t.say("/clear")
    t.send('"""five')
    t.key("Enter")
    t.send('six"""')
    t.key("Enter")
    t.wait_for("t/s", 3)
    assert "user: five\nsix" in _plain(t.say("/show messages"))

    t.say("/clear")
    t.paste("seven\neight \\\nnine")  # a paste is never sent by its line ends
    t.wait_for("nine")
    t.key("Enter")
    t.wait_for("t/s", 4)
    assert "user: seven\neight \\\nnine" in _plain(t.say("/show messages"))

    t.say("/clear")
    t.key("C-g")
    t.wait_for("> from the editor")
    t.key("Enter")
    t.wait_for("t/s", 5)

    t.wait_for_prompt()
    t.key("Up")  # the history
    t.wait(lambda: t.cursor()[0].rstrip() == "> from the editor", "the last message")
    t.key("C-c")  # takes back what is typed
    t.wait_for("Ctrl-D or /exit leaves.")
    t.wait_for_prompt()
    t.key("C-r")
    t.send("thr")
    t.wait(lambda: re.search(r"> three\n *four\s+I-search backward: thr", t.text()), "the search")
    t.key("Enter")  # takes the message found, which can then be changed
    t.wait(
        lambda: "I-search" not in t.text() and re.search(r"three|four", t.cursor()[0]),
        "the message",
    )
    t.key("C-c")
    t.wait_for("Ctrl-D or /exit leaves.", 2)
    t.wait_for_prompt()

    t.send("/exp")
    t.key("Tab")
    t.wait(lambda: t.cursor()[0].rstrip() == "> /experts", "the command")
    t.key("Enter")
    t.wait_for("mode sparse; the router chooses")
    t.wait_for_prompt()
    t.send("/set top_")
    t.key("Tab")
    t.wait_for("top_k")
    t.key("C-c")
    t.wait_for("leaves.", 3)
    t.wait_for_prompt()
    t.send(f"/read {tmp_path}/a")
    t.key("Tab")
    t.wait_for("a story.txt")
    t.key("Enter")
    t.wait_for("characters of a story.txt")
    t.wait_for_prompt()
    t.key("C-d")
    assert t.wait_for_exit() == 0


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def stopped_answer(terminal: Start, model_file: Path) -> Terminal:
    """A chat whose first answer Ctrl-C has stopped.

    The grammar has no end, so an answer goes on to the end of a context of 400,000 tokens.
    """
    dots = ["--grammar", 'root ::= "." root']
    t = terminal("-m", model_file, "-c", 400000, "--temp", 0, "-t", 1, *dots)
    t.wait_for_prompt()
    t.send("hello")
    t.key("Enter")
    t.wait_for("......")
    t.key("C-c")
    t.wait_for("(stopped)")
    return t


def test_ctrl_c_while_an_answer_is_written(terminal: Start, model_file: Path) -> None:
    """What was said is kept."""
    t = stopped_answer(terminal, model_file)
    assert "t/s" in t.wait_for_prompt()
    t.send("/show messages")
    t.key("Enter")
    t.wait_for("assistant: ......")  # what was said is kept
    t.wait_for_prompt()
    assert "user: hello" in t.text()
    t.send("/exit")
    t.key("Enter")
    assert t.wait_for_exit() == 0


def test_ctrl_c_while_the_prompt_is_read(terminal: Start, model_file: Path, tmp_path: Path) -> None:
    """120,000 tokens take minutes; the message is taken back, and the file waits again."""
    (tmp_path / "long.txt").write_text("word " * 30000)
    t = terminal("-m", model_file, "-c", 400000, "--temp", 0, "-t", 1, "-n", 4)
    t.say(f"/read {tmp_path / 'long.txt'}")
    t.send("hello")
    t.key("Enter")
    t.wait_for("reading 120,0")
    t.key("C-c")
    t.wait_for("(stopped)")
    t.wait_for_prompt()
    assert "reading" not in t.text()  # the line is gone
    assert "(no messages)" in t.say("/show messages")
    t.say("/clear")
    assert "4 tokens" in t.say("hello")
    assert "user: hello" in t.say("/show messages")
    t.key("C-d")
    assert t.wait_for_exit() == 0


def test_single_turn_and_multiline_input(emulated: Callable[..., Emulated], example: Path) -> None:
    t = emulated("-m", example, "--temp", 0, "-t", 1, "-mli", "-st")
    t.say("/think")  # a command needs no Alt
    t.send("What is")
    t.key("Enter")
    t.send("15% of 80?")
    t.key("M-Enter")
    assert t.wait_for_exit() == 0
    assert "> What is\n  15% of 80?" in t.text()
    assert "15% of 80 is" in t.text()


def test_simple_io_has_no_editing_and_no_cursor_movements(
    emulated: Callable[..., Emulated], example: Path
) -> None:
    t = emulated("-m", example, "--temp", 0, "-t", 1, "--simple-io", "-co", "off")
    assert ANSWER in t.say(QUESTION)
    t.send("a\\")
    t.key("Enter")
    t.send("b")
    t.key("Enter")
    t.wait_for("t/s", 2)
    assert "user: a\nb" in _plain(t.say("/show messages"))
    t.key("C-d")
    assert t.wait_for_exit() == 0
    assert b"\x1b" not in t.raw


def test_no_history_leaves_no_file(
    emulated: Callable[..., Emulated], model_file: Path, tmp_path: Path
) -> None:
    t = emulated("-m", model_file, "-t", 1, "--no-history")
    t.say("/stats off")
    t.key("C-d")
    assert t.wait_for_exit() == 0
    assert not (tmp_path / "state").exists()


def test_thoughts_are_dim_and_hidden_live(emulated: Callable[..., Emulated], thinker: Path) -> None:
    t = emulated("-m", thinker, "-n", 24, "--temp", 0, "-t", 1, "--reasoning-budget", 4)
    t.say("Hi")
    begin = t.raw.index(b"\x1b[2m", t.raw.index(b"/help for"))
    thought = t.raw[begin:].partition(b"\x1b[0m")[0].removeprefix(b"\x1b[2m").decode()
    assert thought.strip()
    shown = t.say("/regen")
    assert thought.strip() in shown
    t.say("/think hide")
    assert thought.strip() not in t.say("/regen")


def test_colours_are_off_with_no_color(emulated: Callable[..., Emulated], thinker: Path) -> None:
    args = ["-m", thinker, "-n", 8, "-t", 1, "--reasoning-budget", 4]
    t = emulated(*args, env={"NO_COLOR": "1"})
    t.say("Hi")
    assert not re.search(rb"\x1b\[[\d;]*[1-9][\d;]*m", t.raw)
    t = emulated(*args, "--color", "off")
    t.say("Hi")
    assert not re.search(rb"\x1b\[[\d;]*[1-9][\d;]*m", t.raw)


def test_what_a_model_writes_cannot_drive_the_terminal(
    emulated: Callable[..., Emulated], example: Path
) -> None:
    """A grammar makes it write escape sequences: a title, a colour, C1, and text that runs backwards."""
    evil = r'root ::= "\x1b]0;owned\x07\x1b[31mred\u009b2J\u202eback"'
    t = emulated("-m", example, "-t", 1, "--grammar", evil)
    t.say(QUESTION)
    assert "[31mred" in t.text()
    sent = t.raw.decode("utf-8", "replace")
    for bytes_of_the_model in ("\x1b]0;owned", "\x1b[31mred", "\x9b", "\u202e"):
        assert bytes_of_the_model not in sent
    assert "owned" not in t.screen.title


def test_markdown(emulated: Callable[..., Emulated], example: Path) -> None:
    answer = r'root ::= "# Title\n\n- **one**\n- two\n\n```python\nx = 1\n```\n\nThe end."'
    t = emulated("-m", example, "-t", 1, "--markdown", "--grammar", answer)
    shown = t.say(QUESTION)
    assert "**" not in shown
    assert "```" not in shown
    assert " • one" in shown
    assert "The end." in shown
    assert shown.count("Title") == 1
    t.say("/set markdown off")
    assert "**one**" in t.say("/regen")


def test_a_session_goes_on(
    emulated: Callable[..., Emulated], example: Path, tmp_path: Path
) -> None:
    file = tmp_path / "s.json"
    args = ["-m", example, "--temp", 0, "-t", 1, "--session", file]
    t = emulated(*args)
    t.say(QUESTION)
    t.close()  # killed: the turn is saved already
    assert len(json.loads(file.read_text())["messages"]) == 2
    again = emulated(*args)
    again.wait_for("goes on after 1 turn")
    assert "25% of 80 is 20" in again.say("And 25%?")
    again.key("C-d")
    assert again.wait_for_exit() == 0
    assert len(json.loads(file.read_text())["messages"]) == 4
    assert file.stat().st_mode & 0o077 == 0


def test_keys_typed_during_an_answer_wait_for_the_prompt(terminal: Start, model_file: Path) -> None:
    """They do not appear in it: Enter, Ctrl-D and letters are what the next prompts get."""
    t = stopped_answer(terminal, model_file)
    t.say("/set max_tokens 2000")
    t.send("again")
    t.key("Enter")
    t.wait(lambda: "...." in t.text().partition("> again")[2], "the answer")
    t.send("/set temp")
    t.key("Enter")
    t.send("/show sys")
    shown = t.wait_for("temperature is 0.0")
    answer = shown.partition("> again")[2].partition("(cut: max tokens)")[0]
    assert set(answer) == set(".\n"), answer  # nothing else is in it
    t.wait(lambda: t.cursor()[0].rstrip() == "> /show sys", "what was typed")
    t.key("C-c")
    t.wait_for_prompt()
    t.key("C-d")
    assert t.wait_for_exit() == 0


def test_a_dumb_terminal_gets_no_escape_sequence(
    emulated: Callable[..., Emulated], example: Path
) -> None:
    args = ["-m", example, "--temp", 0, "-t", 1, "--markdown"]
    t = emulated(*args, env={"TERM": "dumb"})
    assert ANSWER in t.say(QUESTION)
    t.key("C-d")
    assert t.wait_for_exit() == 0
    assert b"\x1b" not in t.raw
