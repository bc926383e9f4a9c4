"""What the methods return validates against the types that the package `openai` publishes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import TinyModel, log_softmax, random_tokens
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, TypeAdapter
from sardine_gguf import Sardine
from sardine_gguf.completion import chat_completion, chat_completion_chunks
from sardine_gguf.convert import convert

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-sardine"
MESSAGES = [{"role": "user", "content": "What is 15% of 80?"}]
PROMPT = random_tokens(12, seed=21)
OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 12, "temperature": 0},
    {"max_tokens": 40, "seed": 3, "temperature": 1.5},
    {"max_tokens": 0},
    {"max_tokens": 60, "temperature": 0, "stop": ["1", "zzz"]},
    {"max_tokens": 30, "grammar": 'root ::= "é😀" [0-9]{3}'},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sardine]:
    path = tmp_path_factory.mktemp("types") / "example.gguf"
    convert(EXAMPLE / "base", EXAMPLE / "srde_weights.pt", path, outtype="q8_0")
    with Sardine(path, n_threads=1) as m:
        yield m


def unknown(value: Any, path: str = "") -> set[str]:
    """Fields that the published type does not have."""
    found = set()
    if isinstance(value, BaseModel):
        found = {f"{path}.{name}" for name in value.model_extra or {}}
        for name in type(value).model_fields:
            found |= unknown(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for entry in value:
            found |= unknown(entry, path)
    return found


def validated(kind: type[BaseModel], value: dict[str, Any]) -> Any:
    """Parsed without conversions, and nothing lost or unknown but the thoughts."""
    parsed = TypeAdapter(kind).validate_python(value, strict=True)
    assert {name.rsplit(".")[-1] for name in unknown(parsed)} <= {"reasoning", "reasoning_content"}
    assert parsed.model_dump(exclude_unset=True) == value
    return parsed


def validated_text_chunk(value: dict[str, Any]) -> Any:
    """A Completion whose choice has not ended: the type has no null there, but OpenAI's streams do."""
    choice = value["choices"][0]
    if choice["finish_reason"] is not None:
        return validated(Completion, value)
    validated(Completion, {**value, "choices": [{**choice, "finish_reason": "stop"}]})
    return Completion.model_construct(**value)


@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_completion(model: Sardine, options: dict[str, Any], logprobs: int | None) -> None:
    """A Completion; its chunks join to it."""
    options = {**options, "logprobs": logprobs}
    whole = validated(Completion, model.create_completion("What is", **options))
    assert whole.id.startswith("cmpl-")
    assert whole.model == "example.gguf"
    model.reset()
    chunks = list(model.create_completion("What is", stream=True, **{"seed": 3, **options}))
    model.reset()
    whole = model("What is", **{"seed": 3, **options})
    for chunk in chunks:
        validated_text_chunk(chunk)
        assert {k: chunk[k] for k in ("id", "created")} == {
            k: chunks[0][k] for k in ("id", "created")
        }
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert all("usage" not in c for c in chunks[:-1])
    told = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    if logprobs is None or not told:
        return
    joined = {k: [x for t in told for x in t[k]] for k in told[0]}
    assert joined == whole["choices"][0]["logprobs"]


@pytest.mark.parametrize("top_logprobs", [None, 0, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_chat(model: Sardine, options: dict[str, Any], top_logprobs: int | None) -> None:
    """A ChatCompletion; its chunks join to it."""
    options = {"seed": 3, **options}
    if top_logprobs is not None:
        options |= {"logprobs": True, "top_logprobs": top_logprobs}
    model.reset()
    whole = validated(ChatCompletion, model.create_chat_completion(MESSAGES, **options))
    assert whole.id.startswith("chatcmpl-")
    model.reset()
    chunks = [
        validated(ChatCompletionChunk, c)
        for c in model.create_chat_completion(MESSAGES, stream=True, **options)
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({c.id for c in chunks}) == 1
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    if top_logprobs is None:
        assert whole.choices[0].logprobs is None
        return
    entries = [
        e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or []
    ]
    assert [e.model_dump() for e in entries] == [
        e.model_dump() for e in whole.choices[0].logprobs.content
    ]
    assert all(len(e.top_logprobs) == top_logprobs for e in entries)


def test_objects_of_the_package(model: Sardine) -> None:
    """create_chat_completion_openai_v1 returns the types themselves."""
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    whole = model.create_chat_completion_openai_v1(MESSAGES, **options)
    assert isinstance(whole, ChatCompletion)
    chunks = list(model.create_chat_completion_openai_v1(MESSAGES, stream=True, **options))
    assert all(isinstance(c, ChatCompletionChunk) for c in chunks)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content


def test_thoughts(tiny: TinyModel) -> None:
    """Thoughts are told under both names, apart from the answer, in messages and chunks."""
    with tiny.open() as m:
        think = (5, 6)
        script = [5, 20, 30, 6, 40, 41]
        m.__dict__["think_tokens"] = think
        # The grammar stands in for a model that thinks.
        grammar = "root ::= " + " ".join(f"<[{t}]>" for t in script)

        def scripted(**options: Any) -> Any:
            return m.start_chat([{"role": "user", "content": "x"}], logprobs=1, **options)

        options: dict[str, Any] = {"grammar": grammar, "max_tokens": 20}
        whole = chat_completion(scripted(**options), "m", logprobs=True)
        message = whole["choices"][0]["message"]
        assert message["reasoning_content"] == message["reasoning"] == m.detokenize(script[1:3])
        assert message["content"] == m.detokenize(script[4:6])
        assert len(whole["choices"][0]["logprobs"]["content"]) == 2
        validated(ChatCompletion, whole)
        chunks = list(chat_completion_chunks(scripted(**options), "m", logprobs=True))
        deltas = [c["choices"][0]["delta"] for c in chunks]
        for name in ("reasoning", "reasoning_content"):
            assert "".join(d.get(name, "") for d in deltas) == message["reasoning"]
        assert "".join(d.get("content", "") for d in deltas) == message["content"]
        for chunk in chunks:
            validated(ChatCompletionChunk, chunk)


# ---- what the numbers are ----


def test_logprobs_are_the_models(tiny: TinyModel) -> None:
    """Of the raw distribution, whatever the sampling options; the top list is the true one."""
    with tiny.open() as m:
        options: dict[str, Any] = {
            "temperature": 2.0,
            "top_k": 5,
            "seed": 1,
            "presence_penalty": 1.0,
            "logit_bias": {30: 3.0},
        }
        g = m.start(PROMPT, max_tokens=20, logprobs=4, **options)
        text = "".join(p for _, p in g)
        entries = g.take_logprobs()
        ids = [t for t in g.tokens if t != m.token_eos()]
        assert len(entries) == len(ids)
        assert b"".join(e.data for e in entries).decode("utf-8", "replace") == text
        m.reset()
        expected = log_softmax(m.eval([*PROMPT, *ids])[len(PROMPT) - 1 :])
        for row, token, entry in zip(expected, ids, entries, strict=False):
            assert entry.logprob == pytest.approx(row[token], abs=1e-4)
            best = np.sort(row)[::-1][:4]
            assert [v for _, v in entry.top] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("stop", ["e", "th", "o "])
def test_logprobs_end_with_the_text(tiny: TinyModel, stop: str) -> None:
    """Tokens of the part that a stop string cut off are not told; offsets are places in the text."""
    with tiny.open() as m:
        for seed in range(5):
            options: dict[str, Any] = {"max_tokens": 60, "seed": seed, "logprobs": 0}
            options["grammar"] = "root ::= [a-z ]+"
            choice = m(PROMPT, stop=stop, **options)["choices"][0]
            told = choice["logprobs"]
            before = len(m.detokenize(PROMPT))
            assert all(o - before < len(choice["text"]) for o in told["text_offset"])
            assert "".join(told["tokens"]).startswith(choice["text"])
            assert told["text_offset"] == sorted(told["text_offset"])


def test_echo(tiny: TinyModel) -> None:
    """The prompt goes before the text, and the logprobs of its tokens before those of the answer."""
    with tiny.open() as m:
        prompt = "the rain in the north"
        ids = m.tokenize(prompt)
        plain = m(prompt, max_tokens=0, echo=True)
        assert plain["choices"][0]["text"] == prompt
        for n in (3, 0):
            choice = m(prompt, max_tokens=n, echo=True, logprobs=2, temperature=0)["choices"][0]
            told = choice["logprobs"]
            assert choice["text"].startswith(prompt)
            assert told["token_logprobs"][0] is None
            assert len(told["tokens"]) == len(ids) - 1 + n
            assert "".join(told["tokens"])[: len(prompt)] == prompt
        m.reset()
        rows = log_softmax(m.eval(ids))
        expected = [row[t] for row, t in zip(rows[1:], ids[2:], strict=False)]
        assert told["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
        chunks = list(m(prompt, max_tokens=3, echo=True, logprobs=2, temperature=0, stream=True))
        assert chunks[0]["choices"][0]["text"] == prompt
        assert chunks[0]["choices"][0]["logprobs"] == told


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda m: m("a", logprobs=-1), ValueError, "logprobs"),
        (lambda m: m.create_chat_completion(MESSAGES, top_logprobs=3), ValueError, "logprobs=True"),
        (lambda m: m.create_chat_completion(MESSAGES, logprobs=True, top_logprobs=21), ValueError, "20"),
        (lambda m: m.create_chat_completion(MESSAGES, tools=[{"type": "function"}]), ValueError, "tools"),
        (lambda m: m("a", suffix="b"), ValueError, "suffix"),
        (lambda m: m("a", n=2), ValueError, "n is not supported"),
        (lambda m: m("a", stopping_criteria=abs), ValueError, "use stop"),
        (lambda m: m("a", temperatur=1), TypeError, "temperature"),
        (lambda m: Sardine.from_pretrained("a/b", filename="x"), NotImplementedError, "path"),
        (lambda m: m.create_embedding("a"), AttributeError, "embeddings"),
        (lambda m: m.no_such_thing, AttributeError, "no_such_thing"),
    ],
)  # fmt: skip
def test_what_is_refused(model: Sardine, call: Any, error: type[Exception], why: str) -> None:
    """An error that says so."""
    with pytest.raises(error, match=why):
        call(model)


def test_neutral_values(model: Sardine) -> None:
    """llama-cpp-python's defaults may be spelled out."""
    answer = model(
        "a", suffix=None, tfs_z=1.0, stopping_criteria=None, logits_processor=None, stop=[],
        max_tokens=-1, grammar='root ::= "ok"', logit_bias=None, model="name",
    )  # fmt: skip
    assert answer["choices"][0]["text"] == "ok"
    assert answer["model"] == "name"


# ---- the constructor ----


def test_constructor_of_llama(tiny: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments of llama_cpp.Llama that ask for what is done anyway."""
    with Sardine(
        model_path=str(tiny.gguf), n_ctx=64, n_batch=32, n_ubatch=32, n_threads=1, n_threads_batch=1,
        seed=5, logits_all=True, flash_attn=True, verbose=False, use_mmap=True, use_mlock=False,
        embedding=False, type_k=0, type_v=0, last_n_tokens_size=16, n_gpu_layers=0, chat_format=None,
    ) as m:  # fmt: skip
        assert m.n_ctx == m.n_ctx() == 64
        assert type(m.n_ctx()) is int
        assert m.n_vocab() == m.n_vocab
        assert m.sampling.repeat_last_n == 16
        assert m.model_path == str(tiny.gguf)
        assert m.tokenize("é".encode()) == m.tokenize("é")
        assert m.detokenize_bytes(m.tokenize("é")[1:2]) == "é".encode()[:1]
        with pytest.raises(UnicodeDecodeError):
            m.tokenize(b"\xff")
        m.set_seed(7)
        assert m.sampling.seed == 7


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"chat_format": "llama-2"}, ValueError, "template"),
        ({"lora_path": "x"}, ValueError, "LoRA"),
        ({"embedding": True}, ValueError, "embeddings"),
        ({"rope_freq_base": 1e4}, ValueError, "positions"),
        ({"type_k": 1, "type_v": 0}, ValueError, "same"),
        ({"type_k": 2}, ValueError, "type_k"),
        ({"n_threads_batch": 7}, ValueError, "n_threads"),
        ({"use_mlock": True}, ValueError, "use_mlock"),
        ({"no_such": 1}, TypeError, "no_such"),
        ({"model_path": "x"}, TypeError, "model_path"),
    ],
)
def test_refused_constructor_arguments(
    tiny: TinyModel, arguments: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        Sardine(tiny.gguf, **arguments)
