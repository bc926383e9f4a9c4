"""Experts in the chat: colours and legend of a turn, /experts, --experts and --show-routing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sardine_gguf import Sardine, cli
from sardine_gguf.chat_experts import configure, view_of
from sardine_gguf.chat_loop import Chat
from sardine_gguf.cli_flags import build_parser
from sardine_gguf.expert_colours import expert_colours, sgr_colour
from sardine_gguf.expert_view import ExpertColours, TurnShares
from sardine_gguf.routes import Routes

NAMES = ["math", "logic", "code"]
SGR = [sgr_colour(c) for c in expert_colours(8)]


def routes(*leading: int) -> Routes:
    """One layer; each token's first expert, with 3/4 of the weight, and the next one."""
    ids = np.int32([[[e, (e + 1) % 3] for e in leading]])
    return Routes(ids, np.float32([[[0.75, 0.25]] * len(leading)]), 3)


def test_pieces_are_coloured() -> None:
    """By the last token's leading expert; control characters never pass."""
    c = ExpertColours(NAMES)
    pieces = [("one", routes(2, 0)), ("", routes(1)), (" \x1b[2Jtwo", routes(1))]
    assert list(c.coloured(pieces)) == [
        f"{SGR[0]}one\x1b[0m", "", f"{SGR[1]} \ufffd[2Jtwo\x1b[0m",
    ]  # fmt: skip
    none = Routes(np.zeros((1, 1, 0), np.int32), np.zeros((1, 1, 0), np.float32), 3)
    assert list(c.coloured([("plain", none)])) == ["plain"]


def test_legend_and_table() -> None:
    """Largest first, small shares left out, hostile names harmless."""
    c = ExpertColours(["math", "\x1b]0;x\x07\nb", "code"])
    shares = np.array([0.2, 0.797, 0.003])
    assert c.legend(shares, colour=False) == "\ufffd]0;x\ufffd\ufffdb 80 %  math 20 %"
    assert c.legend(shares).startswith(f"{SGR[1]}\ufffd]0;x")
    assert c.legend(np.zeros(3)) == ""
    table = ExpertColours(NAMES).table(
        {"answer": np.array([0.5, 0.5, 0])}, {"code": "mute", "math": 0.25}, colour=False
    )
    assert table == [
        "             answer",
        "  0 math     50.0 %  0.25",
        "  1 logic    50.0 %",
        "  2 code      0.0 %  mute",
    ]


def test_shares_of_a_turn() -> None:
    """The prompt's from all its tokens, the answer's from what each piece was drawn from."""
    t = TurnShares(3)
    assert t.prompt is None
    assert t.answer.tolist() == [0, 0, 0]
    for r in (routes(0, 1, 2), routes(2), routes(1)):
        t.add(r)
    assert t.prompt is not None
    np.testing.assert_allclose(t.prompt, [1 / 3] * 3)
    np.testing.assert_allclose(t.answer, [(0.25 + 0.25) / 3, 0.75 / 3, (0.75 * 2 + 0.25) / 3])
    t.clear()
    assert t.prompt is None


@pytest.fixture
def model(example: Path) -> Iterator[Sardine]:
    """The bundled example."""
    with Sardine(example, n_threads=1, n_ctx=256) as m:
        yield m


def chat(model: Sardine, *flags: str, **options: Any) -> Chat:
    """A chat with the flags, greedy, on streams of its own."""
    c = Chat(model, options={"temperature": 0}, out=io.StringIO(), err=io.StringIO(), **options)
    configure(c, build_parser().parse_args(["-m", "x", *flags]))
    return c


def test_show_routing_colours_the_answer(model: Sardine) -> None:
    """Each piece in the colour of what drew it, by routing() of the same tokens; a legend under it."""
    c = chat(model, "--show-routing", colour="on")
    turn = c.ask("What is 15% of 80?")
    shown = c.out.getvalue()  # type: ignore[attr-defined]
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == turn.answer + "\n"
    pieces = re.findall(r"(\x1b\[38;5;\d+m)([^\x1b]*)\x1b\[0m", shown)
    prompt = model.chat_template.encode([{"role": "user", "content": "What is 15% of 80?"}])
    answer = turn.generation.tokens
    with model.new_context() as again:
        again.eval(prompt)
        drew = [again.routes().leading()[-1]]
        for token in answer[:-2]:  # the last one ends the text
            again.eval([token])
            drew.append(again.routes().leading()[-1])
    assert [text for _, text in pieces] == [model.detokenize([t]) for t in answer[:-1]]
    assert [style for style, _ in pieces] == [SGR[e] for e in drew]
    notes = c.err.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"\x1b\[38;5;\d+mmath\x1b\[0m \d+ %", notes)
    assert re.search(r"\| math \d\d %\]", notes)
    c.take("/experts colours")
    assert c.piece_style is None
    c.take("/experts colours")
    assert c.piece_style is not None


def replayed(model: Sardine, prompt: list[int], answer: list[int]) -> list[Routes]:
    """The routes of a prompt, then of each token, evaluated one by one."""
    with model.new_context() as again:
        again.session.decode(prompt)
        found = [again.routes()]
        for token in answer:
            again.session.decode([token])
            found.append(again.routes())
    return found


@pytest.mark.parametrize(
    ("answer", "thinking"),
    [
        ("I 👩‍🚀 🦈!", True),  # characters of several tokens
        ("[THINK]so 🦈[/THINK]yes", True),
        ("[THINK]so 🦈[/THINK]yes", False),
        ("[THINK][/THINK]", True),  # nothing is shown of it
    ],
)
def test_every_token_counts_once(
    model: Sardine, monkeypatch: pytest.MonkeyPatch, answer: str, thinking: bool
) -> None:
    """Parts of characters, thoughts, hidden ones too: shares are of tokens, not of pieces of text."""
    script = [*model.tokenize(answer, add_bos=False, special=True), model.token_eos()]
    drawn = iter(script)
    monkeypatch.setattr("sardine_gguf.claimed.ClaimedContext.sample", lambda *_: next(drawn))
    c = chat(model, colour="off")
    c.looks.thinking = thinking
    seen: list[tuple[list[int], int]] = []
    c.on_evaluated.append(lambda tokens, routes: seen.append((tokens, routes.n_tokens)))
    before = model.session.counts["tokens"]
    turn = c.ask("Why?")
    assert turn.generation.tokens == script
    prompt = model.chat_template.encode([{"role": "user", "content": "Why?"}])
    assert seen == [(prompt, len(prompt)), *(([t], 1) for t in script[:-1])]
    assert sum(n for _, n in seen) == model.session.counts["tokens"] - before
    view = view_of(c)
    assert view is not None
    assert view.shares.n_prompt == len(prompt)
    assert view.shares.n_answer == len(script)
    expected = replayed(model, prompt, script[:-1])
    assert view.shares.prompt is not None
    np.testing.assert_allclose(view.shares.prompt, expected[0].shares(), atol=1e-6)
    drew = np.mean([r.by_token()[-1] for r in expected], axis=0)
    np.testing.assert_allclose(view.shares.answer, drew, atol=1e-6)
    assert model.n_tokens == len(prompt) + len(script) - 1


def test_experts_command(model: Sardine) -> None:
    """Shows shares, sets, resets; a wrong name changes nothing."""
    c = chat(model, colour="off")

    def said(text: str) -> str:
        c.err.truncate(c.err.seek(0))
        c.take(text)
        return str(c.err.getvalue())  # type: ignore[attr-defined]

    assert "8 experts, 2 a token, mode sparse; the router chooses" in said("/experts")
    first = c.ask("Why is the sky blue?").answer
    assert re.search(r"3 science +\d\d\.\d % +\d\d\.\d %\n", said("/experts"))
    assert said("/experts math=3 7=1") == (
        "(math=0.75 expert_7=0.25; the conversation is read again)\n"
    )
    c.clear()
    other = c.ask("Why is the sky blue?")
    assert other.answer != first
    view = view_of(c)
    assert view is not None
    np.testing.assert_allclose(view.shares.answer, [0.75, 0, 0, 0, 0, 0, 0, 0.25], atol=1e-6)
    assert "math=0.75 expert_7=0.25" in said("/experts").splitlines()[0]
    for bad in ("/experts mth=1", "/experts math", "/experts math=1 code=+1"):
        with pytest.raises(ValueError, match="expert"):
            c.take(bad)
    assert model.experts == {"math": 0.75, "expert_7": 0.25}
    assert said("/experts reset").startswith("(the router chooses")
    c.clear()
    assert c.ask("Why is the sky blue?").answer == first


def test_where_nothing_is_routed(model: Sardine) -> None:
    """Off and plain bases say so; all experts muted leave no colour and no share."""
    off = model.new_context(delta_mode="off")
    with pytest.raises(ValueError, match="nothing is routed"):
        chat(off, "--show-routing")
    c = chat(off)
    with pytest.raises(ValueError, match="nothing is routed"):
        c.take("/experts colours")
    with pytest.raises(ValueError, match='delta_mode "off"'):
        c.take("/experts math=1")
    c.take("/experts")
    c.ask("What is 15% of 80?")
    muted = chat(model.new_context(experts="*=mute"), "--show-routing", colour="on")
    turn = muted.ask("What is 15% of 80?")
    assert muted.out.getvalue() == turn.answer + "\n"  # type: ignore[attr-defined]


def test_flags(example: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--experts steers an answer; a wrong one is wrong use, before anything is answered."""
    args = ["-m", str(example), "-p", "What is 15% of 80?", "--temp", "0", "-t", "1"]
    answers = set()
    for experts in ([], ["--experts", "science=1"], ["--experts", "*=mute"]):
        assert cli.main([*args, *experts]) == 0
        answers.add(capfd.readouterr().out)
    assert len(answers) >= 2
    for bad, match in (
        (["--experts", "mth=1"], "did you mean 'math'"),
        (["--experts", "math=1", "--delta-mode", "off"], 'delta_mode "off"'),
        (["--show-routing", "--no-experts"], "nothing is routed"),
    ):
        assert cli.main([*args, *bad]) == 2
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert match in err
