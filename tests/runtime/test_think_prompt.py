"""The request to think, which a system message of one's own would replace, is added to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sardine_gguf import Sardine
from sardine_gguf.think_prompt import default_think_prompt
from test_mistral_common import (
    CONVERSATIONS,
    OURS,
    Reference,
    assistant,
    system,
    text,
    thinking,
    user,
    with_template,
)

# The default message of tests/runtime/ministral3_reasoning.jinja.
BEFORE = (
    "# HOW YOU SHOULD THINK AND ANSWER\n\nFirst draft your thinking process until you arrive at a response."
    "\n\nYour thinking process must follow the template below:"
)
INSIDE, AFTER = "Your thoughts or/and draft.", "Here, provide a self-contained response."
PROMPT = [text(BEFORE), thinking(INSIDE), text(AFTER)]
SPELLED = f"{BEFORE}[THINK]{INSIDE}[/THINK]{AFTER}"


@pytest.fixture(scope="module")
def model(example_base: Path) -> Iterator[Sardine]:
    with Sardine(with_template(example_base, OURS, "think.gguf"), n_threads=1) as m:
        yield m


@pytest.fixture(scope="module")
def reference(workshop: Path) -> Reference:
    pytest.importorskip("mistral_common")
    return Reference(workshop / "tekken-think.json")


def prompt_of(m: Sardine, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """The tokens that a chat evaluates."""
    m.create_chat_completion(messages, max_tokens=0, **options)
    return m.session.tokens


@pytest.mark.parametrize(
    "content", ["Be brief.", [text("Be brief.")], [text("Be brief."), text("And [THINK]kind[/THINK].")]]
)  # fmt: skip
def test_added_as_the_model_card_asks(model: Sardine, reference: Reference, content: Any) -> None:
    """Token for token what mistral-common makes of both together; its thoughts are between think tokens."""
    own = [text(content)] if isinstance(content, str) else content
    for talk in ([user("Hi")], [user("Hi"), assistant("Hello."), user("1 + 1?")]):
        expected = reference.encode([system([*own, *PROMPT]), *talk])
        assert prompt_of(model, [system(content), *talk]) == expected
        assert prompt_of(model, [system(content), *talk], think_prompt=True) == expected
        as_given = model.chat_template.encode([system(content), *talk])
        assert as_given != expected
        assert prompt_of(model, [system(content), *talk], think_prompt=False) == as_given


@pytest.mark.parametrize(
    "messages",
    [
        [user("Hi")],
        [system(""), user("Hi")],
        [system(PROMPT), user("Hi")],
        [system([text("Be brief."), *PROMPT]), user("Hi")],
        [system([thinking("mine"), text("Be brief.")]), user("Hi")],
        [system(f"Be brief.\n\n{SPELLED}"), user("Hi")],
    ],
)
def test_left_alone(model: Sardine, messages: list[dict[str, Any]]) -> None:
    """Without a system message, with an empty one, or with a request to think of its own."""
    assert prompt_of(model, messages) == model.chat_template.encode(messages)


def test_not_where_a_grammar_rules_thoughts_out(model: Sardine) -> None:
    """Unless it is asked for."""
    messages = [system("Be brief."), user("Hi")]
    plain = model.chat_template.encode(messages)
    for options in ({"grammar": 'root ::= "x"'}, {"response_format": {"type": "json_object"}}):
        assert prompt_of(model, messages, **options) == plain
        assert len(prompt_of(model, messages, think_prompt=True, **options)) > len(plain)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_other_templates(example_base: Path, name: str) -> None:
    """Those without such a message, the example's own among them, are as before."""
    with Sardine(example_base, n_threads=1) as m:
        assert m.chat_template.think_prompt is None
        messages = CONVERSATIONS[name]
        assert prompt_of(m, messages) == m.chat_template.encode(messages)
        with pytest.raises(ValueError, match="think_prompt is True"):
            m.start_chat(messages, think_prompt=True)


def test_turns_evaluate_only_what_is_new(model: Sardine) -> None:
    messages = [system("Be brief."), user("Hi")]
    model.reset()
    reply = model.create_chat_completion(messages, max_tokens=5, temperature=0)
    messages += [assistant(reply["choices"][0]["message"]["content"]), user("Go on")]
    again = model.create_chat_completion(messages, max_tokens=5, temperature=0)
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= reply["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("rendered", "blocks"),
    [
        ("", None),
        ("<s>[INST].[/INST]", None),
        ("<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST][THINK]x[/THINK][/INST]", None),
        ("[SYSTEM_PROMPT][THINK]a\nb[/THINK][/SYSTEM_PROMPT]", [thinking("a\nb")]),
        (
            "[SYSTEM_PROMPT]a[THINK][/THINK]b[THINK]c[/THINK]\n[/SYSTEM_PROMPT][INST]",
            [text("a"), thinking(""), text("b"), thinking("c"), text("\n")],
        ),
    ],
)
def test_what_a_template_asks_for(rendered: str, blocks: list[dict[str, str]] | None) -> None:
    assert default_think_prompt(rendered) == blocks
