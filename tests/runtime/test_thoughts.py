"""Thoughts: apart from the answer by token id, streamed, counted, cut by a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_mutate import Gguf
from hypothesis import given
from hypothesis import strategies as st
from models import EXAMPLE
from sardine_gguf import Sardine
from sardine_gguf.generation import Generation, TokenLoop
from sardine_gguf.thoughts import ThoughtBudget

USER = [{"role": "user", "content": "What is 15% of 80?"}]
THINK, END_THINK, EOS = 34, 35, 2


@pytest.fixture(scope="module")
def thinker(example_base: Path) -> Path:
    """A model whose template begins the thoughts, so that it thinks without having learned to."""
    g = Gguf.parse(example_base.read_bytes())
    template = (EXAMPLE / "base" / "chat_template.jinja").read_text() + "{{ '[THINK]' }}"
    g.set("tokenizer.chat_template", "str", template)
    path = example_base.with_name("thinker.gguf")
    path.write_bytes(g.build())
    return path


@pytest.fixture(scope="module")
def model(example_base: Path) -> Iterator[Sardine]:
    with Sardine(example_base, n_ctx=512, n_threads=1) as m:
        yield m


class Script:
    """In a sampler's place: tokens that the model is said to choose."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens = iter(tokens)
        self.asked = 0
        self.accepted: list[int] = []

    def accept_prompt(self, tokens: list[int]) -> None:
        self.accepted += tokens

    def sample(self, *_: object) -> int:
        self.asked += 1
        return next(self._tokens)


def scripted(
    model: Sardine,
    tokens: Iterable[int],
    budget: int = -1,
    prompt: tuple[int, ...] = (1,),
    **options: Any,
) -> Generation:
    think = model.think_tokens
    assert think == (THINK, END_THINK)
    return Generation(
        TokenLoop(
            model,
            list(prompt),
            Script(tokens),  # type: ignore[arg-type]
            think=think,
            thoughts=ThoughtBudget(think, budget, prompt),
            **options,
        )
    )


def channels(generation: Generation) -> dict[str, str]:
    out = {"content": "", "reasoning": ""}
    for channel, piece in generation:
        out[channel] += piece
    return out


def ids(model: Sardine, text: str) -> list[int]:
    return model.tokenize(text, add_bos=False)


def test_channels(model: Sardine) -> None:
    """By token, not by text: what looks like the tokens' names stays where it is."""
    fake = ids(model, "[THINK]no[/THINK]")
    assert not {THINK, END_THINK} & set(fake)
    script = [*fake, THINK, *ids(model, "hm [/THINK]"), END_THINK, *ids(model, "12"), EOS]
    g = scripted(model, script)
    assert channels(g) == {"content": "[THINK]no[/THINK]12", "reasoning": "hm [/THINK]"}
    assert g.finish_reason == "stop"


def test_stop_strings_end_the_answer_only(model: Sardine) -> None:
    script = [THINK, *ids(model, "stop here"), END_THINK, *ids(model, "a stop b"), EOS]
    g = scripted(model, script, stop=["stop"])
    assert channels(g) == {"content": "a ", "reasoning": "stop here"}


def test_thoughts_in_the_answer(model: Sardine) -> None:
    """Without splitting, the names of the tokens show where they are."""
    script = [THINK, *ids(model, "hm"), END_THINK, *ids(model, "12"), EOS]
    g = scripted(model, script, split_thoughts=False)
    assert channels(g) == {"content": "[THINK]hm[/THINK]12", "reasoning": ""}


@pytest.mark.parametrize("budget", [0, 1, 3, 5])
def test_budget_is_counted_exactly(model: Sardine, budget: int) -> None:
    """N tokens of thought, then the forced end, which the sampler was not asked for, then the answer."""
    words = ids(model, "one two three four five six seven eight")
    assert len(words) > 6
    answer = [*ids(model, "12"), EOS]
    g = scripted(model, [THINK, *words[:budget], *answer], budget)
    found = channels(g)
    assert g.tokens == [THINK, *words[:budget], END_THINK, *answer]
    assert g._loop._sampler.asked == len(g.tokens) - 1  # type: ignore[attr-defined]
    assert found == {"content": "12", "reasoning": model.detokenize(words[:budget])}
    assert g.timings.completion_tokens == len(g.tokens)


def test_budget_that_is_not_used_up(model: Sardine) -> None:
    """Thoughts that end in time are as they were; what is left counts for those that follow."""
    words = ids(model, "one two three four five six")
    script = [THINK, *words[:2], END_THINK, words[0], THINK, words[1], *[words[0], EOS]]
    g = scripted(model, script, 3)
    channels(g)
    assert g.tokens == [
        THINK,
        *words[:2],
        END_THINK,
        words[0],
        THINK,
        words[1],
        END_THINK,
        words[0],
        EOS,
    ]


def test_prompt_that_opens_thoughts(model: Sardine) -> None:
    """The stream begins inside; thoughts that a prompt closed do not count."""
    words = ids(model, "one two three four")
    inside = scripted(model, [*words[:2], *words[2:], EOS], 2, (1, THINK))
    found = channels(inside)
    assert inside.tokens == [*words[:2], END_THINK, *words[2:], EOS]
    assert found["reasoning"] == model.detokenize(words[:2])
    outside = scripted(model, [*words, EOS], 0, (1, THINK, 60, END_THINK))
    assert channels(outside)["reasoning"] == ""
    assert outside.tokens == [*words, EOS]


@given(st.lists(st.sampled_from([THINK, END_THINK, 50, 60]), max_size=30), st.integers(-1, 6))
def test_never_more_than_the_budget(choices: list[int], budget: int) -> None:
    """Whatever the model chooses; and a budget that is large enough changes nothing."""
    thoughts = ThoughtBudget((THINK, END_THINK), budget, [1])
    stream = []
    for choice in choices:
        while (forced := thoughts.forced()) is not None:
            stream.append(forced)
            thoughts.follow(forced)
        stream.append(choice)
        thoughts.follow(choice)
    inside, spent = False, 0
    for token in stream:
        spent += inside and token not in (THINK, END_THINK)
        inside = token == THINK if token in (THINK, END_THINK) else inside
    if budget < 0:
        assert stream == choices
    else:
        assert spent <= budget


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_thoughts_asked_for_again_and_again(model: Sardine, budget: int) -> None:
    """A model that always wants to think: [THINK] inside of thoughts is one, and none are opened after."""
    g = scripted(model, [THINK] * 1000, budget, max_tokens=100)
    assert channels(g)["content"] == ""
    # The last one that it asks for must not come, and there is nothing else.
    assert g.tokens == [THINK, *[THINK] * budget, END_THINK]
    assert g.finish_reason == "stop"


@pytest.mark.parametrize("budget", [0, 2])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 1}])
@pytest.mark.parametrize("split", ["auto", "none"])
def test_a_bias_towards_thoughts(
    model: Sardine, budget: int, sampling: dict[str, Any], split: Any
) -> None:
    """Through the real sampler: with the budget spent the answer goes on without [THINK], to its end."""
    g = model.start_chat(
        USER,
        max_tokens=30,
        reasoning_budget=budget,
        reasoning_format=split,
        logit_bias={THINK: 1e6, EOS: -1e9},
        **sampling,
    )
    out = channels(g)
    assert g.tokens[: budget + 2] == [THINK, *[THINK] * budget, END_THINK]
    assert len(g.tokens) == 30
    assert not {THINK, EOS} & set(g.tokens[budget + 2 :])
    assert out["content"] != ""


def test_where_only_thoughts_may_come(model: Sardine) -> None:
    """A bias that leaves no other token: the answer ends instead of going round in circles."""
    never = {t: float("-inf") for t in range(model.n_vocab()) if t != THINK}
    g = model.start_chat(USER, reasoning_budget=0, logit_bias=never)
    channels(g)
    assert g.tokens == [THINK, END_THINK]
    assert g.finish_reason == "stop"


def test_the_budget_is_one_for_all_thoughts(model: Sardine) -> None:
    """What was thought before counts; thoughts that a prompt opened do too."""
    words = ids(model, "one two three four")
    script = [THINK, words[0], END_THINK, words[1], THINK, THINK, END_THINK, words[2], THINK, EOS]
    g = scripted(model, script, 2)
    channels(g)
    assert g.tokens == [
        *[THINK, words[0], END_THINK, words[1], THINK, THINK, END_THINK],
        END_THINK,  # which the model also chose, as it was forced
        words[2],
    ]
    inside = scripted(model, [words[0], THINK], 1, (1, THINK))
    channels(inside)
    assert inside.tokens == [words[0], END_THINK]


def test_whole_path(thinker: Path) -> None:
    """Options of a completion and its stream: the same split, the same budget."""
    with Sardine(thinker, n_ctx=512, n_threads=1, kv_type="f32") as m:
        options: Any = {"temperature": 0, "max_tokens": 24, "reasoning_budget": 5}
        g = m.start_chat(USER, **options)
        channels(g)
        assert END_THINK in g.tokens[:6]
        end = g.tokens.index(END_THINK)
        m.reset()
        message = m.create_chat_completion(USER, **options)["choices"][0]["message"]
        assert message["reasoning_content"] == m.detokenize(g.tokens[:end])
        kept = [t for t in g.tokens[end + 1 :] if t != EOS]
        assert message["content"] == m.detokenize(kept)
        m.reset()
        deltas = [
            c["choices"][0]["delta"] for c in m.create_chat_completion(USER, stream=True, **options)
        ]
        for key in ("content", "reasoning_content"):
            assert "".join(d.get(key, "") for d in deltas) == message[key]
        m.reset()
        joined = m.create_chat_completion(USER, reasoning_format="none", **options)
        text = joined["choices"][0]["message"]["content"]
        assert text == message["reasoning_content"] + "[/THINK]" + message["content"]
        assert "reasoning_content" not in joined["choices"][0]["message"]
        for bad in ({"reasoning_budget": -2}, {"reasoning_format": "xml"}):
            with pytest.raises(ValueError, match="reasoning_"):
                m.create_chat_completion(USER, **bad)  # type: ignore[arg-type]
