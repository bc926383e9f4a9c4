"""Lines broken between words: on terminals of any width, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sardine_gguf.expert_colours import sgr_colour
from sardine_gguf.terminal import RESET
from sardine_gguf.units import count_text
from sardine_gguf.wrapping import joined, text_width, wrapped
from screens import Emulated

_WORD = st.text(alphabet="ab日é", min_size=1, max_size=9)


@given(
    st.lists(st.tuples(st.sampled_from([" ", "  ", "\n"]), _WORD), max_size=30), st.integers(0, 60)
)
def test_words_are_kept_and_lines_fit(parts: list[tuple[str, str]], width: int) -> None:
    """Every word comes once and whole; a line is too wide only where one word is."""
    text = "".join(space + word for space, word in parts)
    out = wrapped(text, width)
    assert out.split() == text.split()
    if width < 16:
        assert out == text
        return
    for line in out.split("\n"):
        assert text_width(line) <= width or line in text.split("\n") or len(line.split()) == 1
    if all(text_width(line) <= width for line in text.split("\n")):
        assert out == text


def test_a_column_hangs() -> None:
    line = "top_k     40   sample from the k likeliest"
    assert wrapped(line, 30).splitlines() == [
        "top_k     40   sample from the",
        "               k likeliest",
    ]
    assert wrapped("  one two three four", 16).splitlines() == ["  one two three", "  four"]
    long = "a word-that-is-wider-than-the-line b"
    assert wrapped(long, 16).splitlines() == ["a", "word-that-is-wider-than-the-line", "b"]


def test_parts_are_broken_between_each_other() -> None:
    parts = ["[14 prompt tokens, 800 t/s", "first 0.02 s", "math 89 %]"]
    assert joined(parts, " | ", 0) == "[14 prompt tokens, 800 t/s | first 0.02 s | math 89 %]"
    assert joined(parts, " | ", 40).splitlines() == [
        "[14 prompt tokens, 800 t/s |",
        "first 0.02 s | math 89 %]",
    ]
    red = f"{sgr_colour('#ff0000')}math{RESET} 76 %"
    assert text_width(red) == 9
    assert joined([red] * 3, "  ", 20).count("\n") == 1
    assert joined([], " | ", 40) == ""


def test_counts() -> None:
    assert [count_text(n, "turn") for n in (0, 1, 2, 1200)] == [
        "0 turns", "1 turn", "2 turns", "1,200 turns",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_notes_on_a_terminal(
    emulated: Callable[..., Emulated], example: Path, columns: int
) -> None:
    """Facts, stats, help, settings and errors: no word is cut at the edge."""
    t = emulated("-m", example, "--temp", 0, "-t", 1, "--show-routing", rows=60, columns=columns)
    t.wait_for_prompt()
    for line in (
        "What is 15% of 80?",
        "/stats",
        "/help",
        "/set",
        "/experts",
        "/load /nowhere/at/all/of/it.json",
    ):
        t.say(line)
    whole = emulated("-m", example, "--temp", 0, "-t", 1, "--show-routing", rows=60, columns=400)
    whole.wait_for_prompt()
    for line in ("/help", "/set", "/load /nowhere/at/all/of/it.json"):
        whole.say(line)
    shown = t.text()
    words = set(re.findall(r"\S+", shown))
    begin = whole.text().index("Type a message")  # the facts count names that do not fit
    missing = [
        w for w in re.findall(r"\S+", whole.text()[begin:]) if w not in words and len(w) <= columns
    ]
    assert missing == []
    facts = shown[: shown.index("Type a message")]
    assert re.search(r"tokens[\s]+\(f16", facts)
    assert "tiny-sardine.gguf" in facts
    assert re.search(r"context \d+/2048", shown)
