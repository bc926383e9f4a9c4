"""Several uses of one context: the newer goes first and the older says so; nothing is ever mixed."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import TinyModel, random_tokens
from sardine_gguf import BusyError, ContextChanged, Sardine

PROMPT = random_tokens(40, seed=50)
OTHER = random_tokens(30, seed=51)
USER = [{"role": "user", "content": "the rain"}]
OPTIONS: dict[str, Any] = {"temperature": 0.9, "seed": 3, "max_tokens": 24}


@pytest.fixture
def model(wide: TinyModel) -> Iterator[Sardine]:
    with wide.open(kv_type="f16") as m:
        yield m


# Ways to stream, each an iterator that may be left half read.
STREAMS: dict[str, Callable[[Sardine], Iterator[Any]]] = {
    "start": lambda m: m.start(PROMPT, **OPTIONS),
    "stream_generate": lambda m: iter(m.stream_generate(PROMPT, **OPTIONS)),
    "generate_tokens": lambda m: iter(m.generate_tokens(PROMPT, **OPTIONS)),
    "generate": lambda m: iter(m.generate(PROMPT, **OPTIONS)),
    "completion": lambda m: iter(m.create_completion(PROMPT, stream=True, **OPTIONS)),
    "call with logprobs": lambda m: iter(m(PROMPT, stream=True, logprobs=2, **OPTIONS)),
    "echo": lambda m: iter(m(PROMPT, stream=True, logprobs=0, echo=True, **OPTIONS)),
    "chat": lambda m: iter(m.create_chat_completion(USER, stream=True, **OPTIONS)),
}

# What changes a context's content.
CHANGES: dict[str, Callable[[Sardine], object]] = {
    **{f"another {name}": lambda m, s=s: take(s(m), 3) for name, s in STREAMS.items()},  # type: ignore[misc]
    "a whole generation": lambda m: m.generate("the", max_tokens=3, seed=1),
    "a whole chat": lambda m: m.create_chat_completion(USER, max_tokens=3, seed=1),
    "eval": lambda m: m.eval([9]),
    "reset": lambda m: m.reset(),
    "truncate": lambda m: m.session.truncate(5),
    "experts": lambda m: setattr(m, "experts", {"math": 1}),
    "a call with experts": lambda m: m.generate("the", max_tokens=1, seed=1, experts={"math": 1}),
    "load_state": lambda m: m.load_state(m.save_state()),
}

# What reads it, or fails before it changes anything.
READS: dict[str, Callable[[Sardine], object]] = {
    "save_state": lambda m: m.save_state(),
    "sample": lambda m: m.sample(seed=1),
    "routing": lambda m: m.routing(),
    "counts": lambda m: (m.n_tokens, m.session.counts, m.session.memory_bytes, m.session.tokens),
    "the same experts": lambda m: setattr(m, "experts", m.experts),
    "a generation that does not begin": lambda m: m.start(OTHER),
    "a stream that is not read": lambda m: m.create_chat_completion(USER, stream=True),
    "a wrong option": lambda m: refused(lambda: m.generate("the", temperature=-1)),
    "a wrong state": lambda m: refused(lambda: m.load_state(b"nothing")),
    "a long truncation": lambda m: m.session.truncate(1000),
    "another context": lambda m: m.new_context().eval(OTHER),
    "router logits": lambda m: setattr(m, "keep_router_logits", True),
}


def refused(call: Callable[[], object]) -> None:
    """Runs into a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        call()


def take(stream: Iterator[Any], n: int) -> list[Any]:
    """The next n; the stream stays half read."""
    return [next(stream) for _ in range(n)]


def plain(items: list[Any]) -> list[Any]:
    """Chunks without what differs in every call."""
    return [
        {k: v for k, v in i.items() if k not in ("id", "created")} if isinstance(i, dict) else i
        for i in items
    ]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stream", STREAMS)
def test_the_newer_use_goes_first(model: Sardine, stream: str, change: str) -> None:
    """The older one raises at its next token, then is at its end; the newer is as in a fresh context."""
    older = STREAMS[stream](model)
    take(older, 3)
    found = CHANGES[change](model)
    with pytest.raises(
        ContextChanged, match=r"another call has used this context.*new_context\(\)"
    ):
        list(older)
    assert list(older) == []
    with model.new_context(experts={}) as fresh:
        again = STREAMS[stream](fresh)
        take(again, 3)
        expected = CHANGES[change](fresh)
        assert fresh.session.tokens == model.session.tokens
    if isinstance(found, str | list):
        assert plain(list(found)) == plain(list(expected))  # type: ignore[call-overload]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("stream", STREAMS)
def test_reading_disturbs_nothing(model: Sardine, stream: str, read: str) -> None:
    """The stream goes on to the same end."""
    expected = plain(list(STREAMS[stream](model)))
    with model.new_context() as m:
        half = STREAMS[stream](m)
        found = take(half, 3)
        READS[read](m)
        assert plain(found + list(half)) == expected


@pytest.mark.parametrize("how", ["abandoned", "closed", "collected", "failed", "exhausted"])
@pytest.mark.parametrize("stream", STREAMS)
def test_an_ended_stream_blocks_nothing(model: Sardine, stream: str, how: str) -> None:
    """As code written for llama-cpp-python does: leave a stream, begin another, and again."""
    with model.new_context() as fresh:
        expected = plain(list(STREAMS[stream](fresh)))
    for _ in range(3):
        left: Any = STREAMS[stream](model)
        take(left, 3)
        if how == "closed":
            left.close()
        elif how == "collected":
            del left
        elif how == "failed":
            model.reset()
            with pytest.raises(BusyError):
                list(left)
        elif how == "exhausted":
            list(left)
        model.reset()
        assert plain(list(STREAMS[stream](model))) == expected


def test_two_streams_in_turns(model: Sardine) -> None:
    """Whoever begins last gets all of its text."""
    with model.new_context() as fresh:
        expected = list(fresh.generate_tokens(OTHER, **OPTIONS))
    a, b = model.generate_tokens(PROMPT, **OPTIONS), model.generate_tokens(OTHER, **OPTIONS)
    next(a)
    found = [next(b)]
    with pytest.raises(ContextChanged):
        next(a)
    assert found + list(b) == expected
    assert list(model.generate_tokens(OTHER, **OPTIONS)) == expected


def test_one_generation_is_run_once(model: Sardine) -> None:
    """Its pieces and its tokens are the same run."""
    generation = model.start(PROMPT, **OPTIONS)
    next(generation)
    with pytest.raises(ValueError, match="has begun already"):
        next(generation.sampled_tokens())
    assert len(list(generation)) > 5


@pytest.mark.parametrize("n_threads", [2, 5])
def test_threads_on_one_context(wide: TinyModel, n_threads: int) -> None:
    """Each generation is whole and right, or ends with BusyError; nothing between."""
    prompts = [random_tokens(20 + i, seed=60 + i) for i in range(n_threads)]
    with wide.open(kv_type="f16") as model:
        expected = [list(model.generate_tokens(p, **OPTIONS)) for p in prompts]
        whole = [0] * n_threads
        wrong: list[object] = []
        start = threading.Barrier(n_threads)

        def run(i: int) -> None:
            start.wait()
            for _ in range(20):
                found: list[int] = []
                try:
                    for token in model.generate_tokens(prompts[i], **OPTIONS):
                        found.append(token)
                except BusyError:  # ContextChanged is one
                    if found != expected[i][: len(found)]:
                        wrong.append(found)
                except Exception as e:
                    wrong.append(e)
                else:
                    whole[i] += 1
                    if found != expected[i]:
                        wrong.append(found)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(n_threads)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert wrong == []
        assert sum(whole) > 0
        assert list(model.generate_tokens(prompts[0], **OPTIONS)) == expected[0]


@pytest.mark.parametrize("change", ["reset", "eval", "experts", "another generate_tokens"])
def test_a_change_from_another_thread(model: Sardine, change: str) -> None:
    """Between two tokens."""
    stream = model.generate_tokens(PROMPT, **OPTIONS)
    next(stream)
    other = threading.Thread(target=CHANGES[change], args=(model,))
    other.start()
    other.join()
    with pytest.raises(ContextChanged):
        next(stream)


# ---- closing ----


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("begun", [0, 3])
def test_closing_ends_a_stream(wide: TinyModel, stream: str, begun: int) -> None:
    """At its next token; context and file are let go of at once, though the stream is still held."""

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(wide.gguf))

    before = mapped()
    model = wide.open(kv_type="f16")
    half = STREAMS[stream](model)
    take(half, begun)
    assert mapped() > before
    model.close()
    assert mapped() == before
    with pytest.raises(ValueError, match="closed"):
        list(half)
    assert mapped() == before


def test_closing_frees_the_context_of_a_half_read_stream(wide: TinyModel) -> None:
    """Its memory, not only its name: many of them do not add up."""
    with wide.open(kv_type="f16") as model:
        held = []

        def rss() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        for i in range(60):
            context = model.new_context(n_ctx=256, kv_type="f32")
            stream = context.generate_tokens(PROMPT)
            next(stream)
            held.append(stream)
            need = context.session.memory_bytes
            context.close()
            if i == 20:
                start = rss()
        assert rss() - start < 40 * need / 4


def test_closing_while_another_thread_streams(wide: TinyModel) -> None:
    """It ends with the error, whatever it is at."""
    for _ in range(5):
        model = wide.open(kv_type="f16")
        errors: list[BaseException] = []
        begun = threading.Event()

        def run(
            model: Sardine = model,
            begun: threading.Event = begun,
            errors: list[BaseException] = errors,
        ) -> None:
            try:
                while True:
                    for _ in model.generate_tokens(PROMPT, seed=1):
                        begun.set()
            except ValueError as e:
                errors.append(e)

        thread = threading.Thread(target=run)
        thread.start()
        begun.wait()
        model.close()
        thread.join()
        assert "closed" in str(errors[0])


# ---- copies ----


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_second_handle_on_one_context(
    model: Sardine, duplicate: Callable[[Sardine], object]
) -> None:
    with pytest.raises(TypeError, match=r"new_context\(\)|save_state\(\)"):
        duplicate(model)
    assert model.eval(PROMPT).shape == (40, 320)


# ---- plain facts ----


def test_facts_do_not_wait_for_an_evaluation(wide: TinyModel) -> None:
    """n_tokens, memory_bytes and counts, as of the last batch, while another thread evaluates."""
    with wide.open(n_batch=1) as model:
        seen: list[int] = []
        done = threading.Event()
        tokens = random_tokens(250, 3)

        def evaluate() -> None:
            for _ in range(20):
                model.reset()
                model.session.decode(tokens)
                if len(set(seen)) > 5:
                    break
            done.set()

        thread = threading.Thread(target=evaluate)
        thread.start()
        while not done.is_set():
            seen.append(model.n_tokens)
            assert model.session.memory_bytes > 0
            assert model.session.counts["tokens"] >= 0
            assert model.n_ctx == 256
        thread.join()
        assert len(set(seen)) > 5
        assert model.n_tokens == 250


# ---- work per token ----


def test_one_evaluation_a_token(wide: TinyModel) -> None:
    """One batch of one token, and a new graph only where the attended positions grow past the last one's."""
    with wide.open(kv_type="f16") as model:
        stream = model.generate_tokens(
            random_tokens(8, 4), temperature=0.9, seed=1, logit_bias={2: -np.inf}
        )
        next(stream)
        next(stream)
        before = model.session.counts
        assert before["batches"] == 2
        for n in range(1, 201):
            next(stream)
            now = model.session.counts
            assert now["tokens"] == before["tokens"] + n
            assert now["batches"] == before["batches"] + n
            assert now["nodes"] == before["nodes"]
            assert now["graphs"] == before["graphs"]
