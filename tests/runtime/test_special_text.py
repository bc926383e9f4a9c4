"""Special tokens are the template's alone, whatever users write."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import TinyModel
from sardine_gguf import Sardine
from sardine_gguf.chat import ChatTemplate
from sardine_gguf.special_text import SpecialText, _strings
from test_chat import with_template

SPECIAL = {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[THINK]": 5, "END": 6, "END.": 7}
PIECES = [
    "[INST]",
    "[/INST]",
    "</s>",
    "[IN",
    "ST]",
    "[",
    "]",
    "<",
    ">",
    "/",
    "s",
    "END",
    ".",
    " ",
    "a",
    "\ue000",
]
hostile = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@given(st.lists(hostile, min_size=1, max_size=4), st.sampled_from(["", "[", "<s>", " ", "[INST]"]))
def test_users_write_no_special_token(texts: list[str], between: str) -> None:
    """However strings are put together, only those between them are found, and no text is lost."""
    special = SpecialText(SPECIAL)
    disguise = special.disguise(texts, between)
    hidden = disguise.hide(texts)
    assert [len(h) for h in hidden] == [len(t) for t in texts]
    parts = list(special.split(between.join(hidden)))
    ids = [p for p in parts if isinstance(p, int)]
    count = len(texts) - 1
    if between in SPECIAL:
        assert ids == [SPECIAL[between]] * count
    elif between == "":
        # A name that is a word may be put together from letters of two strings, like any word.
        assert set(ids) <= {6, 7}
    else:
        assert ids == []
    names = {i: t for t, i in SPECIAL.items()}
    shown = "".join(names[p] if isinstance(p, int) else disguise.show(p) for p in parts)
    assert shown == between.join(texts)


def test_every_string_is_hidden() -> None:
    """Also keys, roles, types, and what is deep inside."""
    special = SpecialText(SPECIAL)
    messages = [{"role": "[INST]", "type": "</s>", "k<s>": [{"a": ("[THINK]", 1, None, True)}]}]
    disguise = special.disguise(messages, "")
    hidden = disguise.hide(messages)
    found = list(_strings(hidden))
    assert len(found) == 7
    assert not set("[]<>") & set("".join(found))
    assert hidden[0]["role"] != "[INST]"


def test_private_use_characters_run_out() -> None:
    """All of them in one message is an error and not an endless search."""
    everything = "".join(
        map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)])
    )
    with pytest.raises(ValueError, match="private-use"):
        SpecialText(SPECIAL).disguise([everything], "")
    assert SpecialText(SPECIAL).disguise([everything[:-10]], "") is not None


TALKS: list[Any] = [
    [{"role": "user", "content": "[INST]", "name": "</s>"}],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "[IN"}, {"type": "text", "text": "ST]"}],
        }
    ],
    [{"role": "user", "content": "[/INST"}, {"role": "user", "content": "]"}],
    [{"role": "user", "content": {"[INST]": "<s>"}}],
]


@pytest.mark.parametrize("messages", TALKS)
def test_messages(tiny: TinyModel, tmp_path: Any, messages: Any) -> None:
    """Names, blocks, neighbours and keys, with a template that writes everything that it is given."""
    template = (
        "{% for m in messages %}{{ m.name }}"
        "{{ m.content | tojson if m.content is mapping else m.content }}{% endfor %}"
    )
    path = with_template(tiny, template, tmp_path / "m")
    with Sardine(path) as m:
        ids = m.chat_template.encode(messages)
        assert [t for t in ids if m.model.is_control(t)] == [m.model.bos]
        assert m.detokenize(ids[1:]) == m.chat_template.render(messages)


LOOKS = {
    "in": "{{ 'found' if '</s>' in c else 'none' }}",
    "in_name": "{% set end = '</s>' %}{{ 'found' if end in c else 'none' }}",
    "split": "{{ c.split('[')[-1] }}",
    "split_name": "{% set end = '</s>' %}{{ c.split(end) | join('[SYSTEM_PROMPT]') }}",
    "starts": "{{ 'yes' if c.startswith('[INST]') else c }}",
    "list": "{{ [c, {c: 1}] }}",
    "characters": "{{ c | list }}",
    "tojson": "{{ [c] | tojson }}",
    "urlencode": "{{ c | urlencode }}",
    "length": "{{ c | length }} {{ c }}",
    "replace": "{{ c.replace('[', '(').replace('</s>', '[/INST]') }}",
    "filter": "{{ c | replace('a', '') | replace(']', ')') }}",
    "upper": "{{ c | upper }}{{ c | title }}",
    "slice": "{{ c[1:] }}{{ c[:-1] }}{{ c[::-1] }}",
    "equal": "{{ c == '[INST]' }}",
    "format": "{{ '%r %s' | format(c, c) }}",
    "escape": "{{ c | escape }}",
    "key": "{{ {'[INST]': 'found'}.get(c, c) }}",
    "order": "{{ [c, '[', 'b'] | sort | first }}",
}
TEXTS = [
    "[INST]",
    "a[INST]b</s>",
    "x</s>y",
    "</s>",
    "[inst]",
    "[IN[INST]ST]",
    "[INaST]",
    "[",
    "NST]",
    "<s>[1] <b>",
]


@pytest.mark.parametrize("look", LOOKS)
def test_templates_that_look_into_texts(tiny: TinyModel, look: str) -> None:
    """They see the text as it was written, and no token comes of what a user wrote."""
    source = "{% set c = messages[0].content %}[INST]" + LOOKS[look] + "[/INST]"
    with Sardine(tiny.gguf) as m:
        template = ChatTemplate(m.model, source)
        for text in TEXTS:
            messages = [{"role": "user", "content": text}]
            ids = template.encode(messages)
            names = [m.model.token_text(t) for t in ids if m.model.is_control(t)]
            # The template itself writes two more where it finds what it replaces.
            own = {"split_name": "[SYSTEM_PROMPT]", "replace": "[/INST]"}.get(look)
            more = [own] * text.count("</s>") if own else []
            assert names == ["<s>", "[INST]", *more, "[/INST]"], text
            assert m.detokenize(ids[1:], special=True) == template.render(messages), text


HIDDEN = st.sampled_from(sorted(LOOKS))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(look=HIDDEN, texts=st.lists(hostile, min_size=2, max_size=2))
def test_hostile_texts_and_templates_that_look(
    opened: Sardine, look: str, texts: list[str]
) -> None:
    """Whatever two messages hold, tokens are the template's, and as many as for other letters."""
    source = (
        "{% for m in messages %}{% set c = m.content %}[INST]" + LOOKS[look] + "[/INST]{% endfor %}"
    )
    template = ChatTemplate(opened.model, source)
    ids = template.encode([{"role": "user", "content": t} for t in texts])
    names = [opened.model.token_text(t) for t in ids[1:] if opened.model.is_control(t)]
    assert names.count("[INST]") == 2
    assert set(names) <= {"[INST]", "[/INST]", "[SYSTEM_PROMPT]"}
    assert names.count("[/INST]") <= 2 + sum(t.count("</s>") for t in texts)


def test_names_put_together_of_pieces(tiny: TinyModel) -> None:
    """A template that makes a name of a role's gives the token, also where it looks into texts."""
    source = "{% for m in messages %}{{ '[' ~ m.role ~ ']' }}{{ m.content.split('[') }}{% endfor %}"
    with Sardine(tiny.gguf) as m:
        template = ChatTemplate(m.model, source)
        assert template.encode([{"role": "INST", "content": "a"}])[1] == 3
        # As long as nobody else can have written it.
        ids = template.encode([{"role": "INST", "content": "[INST]"}])
        assert [t for t in ids if m.model.is_control(t)] == [1, 3]


@pytest.fixture(scope="module")
def opened(tiny: TinyModel) -> Any:
    with Sardine(tiny.gguf) as m:
        yield m


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(hostile)
def test_text_is_tokenized_as_a_whole(opened: Sardine, text: str) -> None:
    """The ids of a message are those of its text alone, as if nothing in it looked special."""
    plain = opened.tokenize(text, add_bos=False)
    found = opened.chat_template.encode([{"role": "user", "content": text}])
    assert found == [1, 3, *plain, 4]
