"""Chat prompts against mistral-common, token for token, on the example's tokenizer as a tekken file.

A tekken file wants the single bytes in order behind the special tokens, so its ids are another order of ours;
tokens are compared by what they stand for.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from gguf_mutate import Gguf
from sardine_gguf import Sardine
from sardine_gguf.convert import write_base
from tokenizers.pre_tokenizers import ByteLevel

BASE = Path(__file__).parents[2] / "examples" / "tiny-sardine" / "base"
OURS = Path(__file__).with_name("ministral3_reasoning.jinja").read_text()
# Behind the example's own, whose places are Mistral's.
MORE_SPECIAL = ("[AUDIO]", "[BEGIN_AUDIO]", "[TRANSCRIBE]")


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def thinking(content: str) -> dict[str, str]:
    return {"type": "thinking", "thinking": content}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


SYSTEM_BLOCKS = [text("Think first: "), thinking("your draft"), text("then the answer.")]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [user("What is 15% of 80?")],
    "system": [system("Be brief."), user("Hi")],
    "empty_system": [system(""), user("Hi")],
    "system_blocks": [system(SYSTEM_BLOCKS), user("Hi")],
    "turns": [
        user("Hi"),
        assistant("Hello there."),
        user("1 + 1?"),
        assistant("2"),
        user("And 2 + 2?"),
    ],
    "system_turns": [system("Be\n\nbrief "), user(" Hi "), assistant(" Hello\n"), user("\n")],
    "thoughts": [
        user("1 + 1?"),
        assistant([thinking("It is a sum.\nSo 2."), text("2")]),
        user("Sure?"),
    ],
    "thoughts_twice": [
        system(SYSTEM_BLOCKS),
        user("a"),
        assistant([thinking("x"), text("b"), thinking(" y "), text("c")]),
        user("d"),
        assistant([thinking("z"), text("e")]),
        user("f"),
    ],
    "blocks": [user([text("one")]), assistant([text("two")]), user([text("three")])],
    "several_blocks": [user([text("one"), text("two"), text(" three")])],
    "several_blocks_of_thoughts": [
        user("a"),
        assistant([thinking("x"), text("one"), text("two")]),
        user("b"),
    ],
    "prefix": [user("Count"), assistant("1, 2,", prefix=True)],
    "prefix_thoughts": [user("Count"), assistant([thinking("x"), text("1, ")], prefix=True)],
    "control": [
        system("[SYSTEM_PROMPT]no[/SYSTEM_PROMPT]</s>"),
        user("a [INST] b[/INST]</s><s> [THINK]c[/THINK] [IN"),
        assistant("ST][TOOL_CALLS] d</s>"),
        user("[[INST]] <</s>> [/THINK"),
    ],
    "control_blocks": [
        user([text("[IN"), text("ST]")]),
        assistant([thinking("[/THINK] [/THI"), text("NK] e [THINK]")]),
        user("f"),
    ],
    "unicode": [user("naïve 日本語 😀\ue000\ufeff e\u0301 \u202e"), assistant("ÄÖÜ ß"), user("…")],
    "code": [user("```python\ndef f(x):\n\treturn x[0] < 1 > 2\n```\n\n\n   end")],
}


@pytest.fixture(scope="module")
def model_file(workshop: Path) -> Path:
    """The example's base with its tokenizer."""
    path = workshop / "mistral-common.gguf"
    if not path.exists():
        write_base(BASE, path, "q8_0", n_threads=1)
    return path


def with_template(model_file: Path, template: str, name: str) -> Path:
    g = Gguf.parse(model_file.read_bytes())
    g.set("tokenizer.chat_template", "str", template)
    path = model_file.with_name(name)
    path.write_bytes(g.build())
    return path


class Reference:
    """mistral-common's tokenizer of version 13, that of Ministral 3, and its ids as ours."""

    def __init__(self, path: Path) -> None:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        saved = json.loads((BASE / "tokenizer.json").read_text())
        special = [t["content"] for t in saved["added_tokens"]]
        vocab: dict[str, int] = saved["model"]["vocab"]
        merged = [t for t in sorted(vocab, key=vocab.__getitem__)[len(special) :] if len(t) > 1]
        letter = _letters_of_bytes()
        tokens = [bytes([b]) for b in range(256)] + [
            bytes(letter[c] for c in token) for token in merged
        ]
        all_special = [*special, *MORE_SPECIAL]
        self._ids = [vocab.get(t, -1) for t in all_special]
        char = {b: c for c, b in letter.items()}
        self._ids += [vocab["".join(char[b] for b in t)] for t in tokens]
        path.write_text(
            json.dumps(
                {
                    "config": {
                        "pattern": saved["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
                        "num_vocab_tokens": len(tokens),
                        "default_vocab_size": len(tokens) + len(all_special),
                        "default_num_special_tokens": len(all_special),
                        "version": "v13",
                    },
                    "vocab": [
                        {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
                        for i, t in enumerate(tokens)
                    ],
                    "special_tokens": [
                        {"rank": i, "token_str": t, "is_control": True}
                        for i, t in enumerate(all_special)
                    ],
                }
            )
        )
        self.path = path
        self._tokenizer = MistralTokenizer.from_file(str(path))

    def encode(self, messages: list[dict[str, Any]]) -> list[int]:
        """Our ids of a conversation."""
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        request: Any = ChatCompletionRequest(messages=messages)  # type: ignore[arg-type]
        return [self._ids[t] for t in self._tokenizer.encode_chat_completion(request).tokens]


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the rest follow from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    out = {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(rest)}
    assert set(out) == set(ByteLevel.alphabet())
    return out


@pytest.fixture(scope="module")
def reference(workshop: Path) -> Reference:
    pytest.importorskip("mistral_common")
    return Reference(workshop / "tekken.json")


@pytest.fixture(scope="module")
def generated(model_file: Path, reference: Reference) -> Path:
    """The model with the template that mistral-common itself makes for such a tokenizer."""
    from mistral_common.integrations.chat_templates.chat_templates import (
        convert_tokenizer_to_chat_template,
    )

    template = convert_tokenizer_to_chat_template(reference.path)
    return with_template(model_file, template, "generated.gguf")


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", ["generated", "example", "reasoning"])
def test_conversations(
    template: str, name: str, generated: Path, model_file: Path, reference: Reference
) -> None:
    """Three templates: mistral-common's own, the example's, and one that behaves as Ministral 3's."""
    path = {
        "generated": lambda: generated,
        "example": lambda: model_file,
        "reasoning": lambda: with_template(model_file, OURS, "reasoning.gguf"),
    }[template]()
    messages = CONVERSATIONS[name]
    if template == "reasoning" and messages[0]["role"] != "system":
        messages = [system("Be brief."), *messages]
    with Sardine(path, n_ctx=64) as m:
        found = m.chat_template.encode(messages)
        if messages[-1]["role"] == "assistant":
            assert m.model.eos not in found[-1:]
        assert found == reference.encode(messages)


def test_the_default_system_prompt(model_file: Path, reference: Reference) -> None:
    """It stands in for a missing system message, thoughts as control tokens; any other replaces all of it."""
    before, rest = OURS.split("default_system_message = '")[1].split("[THINK]")[:2]
    inside, after = rest.split("' %}")[0].split("[/THINK]")
    default = [text(before.replace("\\n", "\n")), thinking(inside), text(after)]
    with Sardine(with_template(model_file, OURS, "reasoning.gguf"), n_ctx=64) as m:
        alone = m.chat_template.encode([user("Hi")])
        assert alone == reference.encode([system(default), user("Hi")])
        think = m.think_tokens
        assert think is not None
        assert [t for t in alone if t in think] == list(think)
        assert not set(think) & set(m.chat_template.encode([system("Be brief."), user("Hi")]))


def test_roles_must_take_turns(model_file: Path) -> None:
    with Sardine(with_template(model_file, OURS, "reasoning.gguf"), n_ctx=64) as m:
        for messages in ([user("a"), user("b")], [assistant("a")], [user("a"), system("b")]):
            with pytest.raises(ValueError, match=r"alternate|roles"):
                m.chat_template.encode(messages)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thoughts_by_key(key: str, generated: Path, model_file: Path, reference: Reference) -> None:
    """They become the block that the template reads."""
    given = [user("a"), assistant("b", **{key: "x [/THINK] y"}), user("c")]
    as_block = [user("a"), assistant([thinking("x [/THINK] y"), text("b")]), user("c")]
    for path in (generated, model_file):
        with Sardine(path, n_ctx=64) as m:
            found = m.chat_template.encode(given)
            assert found == m.chat_template.encode(as_block) == reference.encode(as_block)
