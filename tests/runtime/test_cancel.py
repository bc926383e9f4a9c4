"""Stopping: anywhere, soon, and without a trace in what comes next. Nothing leaks however often."""

from __future__ import annotations

import gc
import os
import pkgutil
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from models import TinyModel, make_model, random_tokens
from sardine_gguf import Cancelled, Sardine, _native
from sardine_gguf.generation import Generation, TokenLoop
from sardine_gguf.logprobs import TokenLogprob, token_logprob

PROMPT = random_tokens(100, seed=40)


@pytest.fixture
def model(wide: TinyModel) -> Iterator[Sardine]:
    with wide.open(kv_type="f16") as m:
        yield m


def fresh(wide: TinyModel) -> list[int]:
    """What a new context generates for PROMPT."""
    with wide.open(kv_type="f16") as m:
        return tokens_of(m.start(PROMPT, max_tokens=20, temperature=0.8, seed=1))


def tokens_of(generation: Generation) -> list[int]:
    list(generation)
    return generation.tokens


def check(m: Sardine, wide: TinyModel) -> None:
    """The next generation is a fresh one's, the next evaluation too, bit for bit.

    A GPU's attention rounds keys and values in batches of another size otherwise, which sampling may show:
    there the fresh context reads what was kept of the prompt in one part, too.
    """
    same = [a == b for a, b in zip(m.session.tokens, PROMPT, strict=False)]
    kept = [*same, False].index(False)
    with wide.open(kv_type="f16") as other:
        if kept:
            other.eval(PROMPT[:kept])
        expected = tokens_of(other.start(PROMPT, max_tokens=20, temperature=0.8, seed=1))
    if not os.environ.get("SARDINE_TEST_GPU"):
        assert expected == fresh(wide)
    assert tokens_of(m.start(PROMPT, max_tokens=20, temperature=0.8, seed=1)) == expected
    m.reset()
    with wide.open(kv_type="f16") as other:
        np.testing.assert_array_equal(m.eval(PROMPT), other.eval(PROMPT))


def test_closing_the_iterator(model: Sardine, wide: TinyModel) -> None:
    """After some pieces, before the first, and by leaving a loop."""
    for n in (0, 1, 5):
        generation = model.start(PROMPT, temperature=0.8, seed=1)
        for _ in range(n):
            next(generation)
        generation.close()
        assert next(generation, None) is None
        check(model, wide)
    before = model.session.counts["tokens"]
    for i, _ in enumerate(model.stream_generate(PROMPT, temperature=0.8, seed=1)):
        if i == 3:
            break
    assert model.session.counts["tokens"] < before + 120
    check(model, wide)


def test_closing_a_stream_of_chunks(model: Sardine, wide: TinyModel) -> None:
    """The chat's stream too; the work ends with it."""
    messages = [{"role": "user", "content": "the rain"}]
    chunks = model.create_chat_completion(messages, stream=True, seed=2)
    for _ in range(4):
        next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    done = model.session.counts["tokens"]
    assert list(chunks) == []
    assert model.session.counts["tokens"] == done
    check(model, wide)


def test_an_exception_in_a_callback(model: Sardine, wide: TinyModel) -> None:
    """It comes out of the loop as it is."""
    seen: list[int] = []

    def on_token(token: int) -> None:
        seen.append(token)
        if len(seen) == 5:
            raise LookupError("enough")

    generation = Generation(
        TokenLoop(
            model,
            PROMPT,
            model.sampling.override(seed=1).sampler(model.model, model.n_ctx),
            on_token=on_token,
        )
    )
    with pytest.raises(LookupError, match="enough"):
        list(generation)
    assert len(seen) == 5
    check(model, wide)


def test_cancel_between_two_tokens(model: Sardine, wide: TinyModel) -> None:
    """A generation that has begun ends, though no evaluation ran when cancel() was called."""
    generation = model.start(PROMPT, temperature=0.8, seed=1)
    next(generation)
    model.cancel()
    with pytest.raises(Cancelled):
        list(generation)
    check(model, wide)


def test_cancel_from_a_callback(model: Sardine, wide: TinyModel) -> None:
    """As a user interface would."""
    generation = model.start(PROMPT, temperature=0.8, seed=1)

    def consume() -> None:
        for _ in generation:
            model.cancel()

    with pytest.raises(Cancelled):
        consume()
    assert len(generation.tokens) < 10
    check(model, wide)


def test_cancel_between_two_parts_of_a_prompt(
    model: Sardine, wide: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logprobs of the prompt there is other work between its evaluations: a cancel() then counts too."""
    told = 0

    def tell(*arguments: object) -> TokenLogprob:
        nonlocal told
        told += 1
        if told == 10:
            model.cancel()
        return token_logprob(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("sardine_gguf.token_loop.token_logprob", tell)
    generation = model.start(PROMPT, temperature=0, logprobs=0, prompt_logprobs=True, max_tokens=1)
    with pytest.raises(Cancelled):
        next(generation)
    assert told <= 64
    check(model, wide)


def test_cancel_before_it_begins_has_no_effect(model: Sardine, wide: TinyModel) -> None:
    generation = model.start(PROMPT, max_tokens=20, temperature=0.8, seed=1)
    model.cancel()
    assert tokens_of(generation) == fresh(wide)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("during", ["encode", "sampler", "grammar"])
def test_cancel_while_a_prompt_is_made(
    model: Sardine, wide: TinyModel, monkeypatch: pytest.MonkeyPatch, during: str, stream: bool
) -> None:
    """A call that has not come to its evaluation is cancelled too, once what it does is done."""
    module, name = {
        "encode": ("sardine_gguf.chat.ChatTemplate", "encode"),
        "sampler": ("sardine_gguf.sampling.SamplingOptions", "sampler"),
        "grammar": ("sardine_gguf.openai_api", "response_grammar"),
    }[during]
    real = pkgutil.resolve_name(f"{module}.{name}")

    def cancelled_within(*arguments: object, **options: object) -> object:
        model.cancel()
        return real(*arguments, **options)

    before = model.session.counts
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", cancelled_within)
        with pytest.raises(Cancelled):
            model.create_chat_completion([{"role": "user", "content": "the rain"}], stream=stream)
    assert model.session.counts == before
    check(model, wide)


def test_cancel_reaches_one_context_only(model: Sardine, wide: TinyModel) -> None:
    other = model.new_context()
    a = model.start(PROMPT, max_tokens=20, temperature=0.8, seed=1)
    b = other.start(PROMPT, max_tokens=20, temperature=0.8, seed=1)
    next(a), next(b)
    other.cancel()
    assert tokens_of(a) == fresh(wide)
    with pytest.raises(Cancelled):
        list(b)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(("mode", "n_batch"), [("sparse", 512), ("sparse", 50), ("off", 512)])
def test_cancel_inside_a_prompt(long: TinyModel, mode: str, n_batch: int, kv_type: str) -> None:
    """At whatever node it is, in our attention too: the tokens held before, and the same bits after."""
    prompt = random_tokens(2500, seed=41)
    held, rest = prompt[:100], prompt[100:]
    with long.open(delta_mode=mode, n_batch=n_batch, n_ctx=2600, kv_type=kv_type, n_threads=2) as m:
        m.eval(held)
        cancelled = 0
        for attempt in range(
            60
        ):  # on a busy machine a prompt may end before the other thread wakes
            done = threading.Event()

            def stop(done: threading.Event = done, delay: float = 0.01 * (attempt % 4)) -> None:
                if not done.wait(delay):
                    m.cancel()

            thread = threading.Thread(target=stop)
            thread.start()
            try:
                m.session.decode(rest)
                m.session.truncate(100)
            except Cancelled:
                cancelled += 1
            done.set()
            thread.join()
            assert m.session.tokens == held
            if cancelled == 3:
                break
        assert cancelled == 3
        found = m.eval(rest[:200])
        with m.new_context() as other:
            other.eval(held)
            np.testing.assert_array_equal(found, other.eval(rest[:200]))


@pytest.fixture
def small_nodes() -> Iterator[Callable[[float, float], object]]:
    """Sets the work of a node, of a product and of flash attention, as if the model were that much larger."""
    before = _native.set_node_work(1e18, 1e18, 1e18)
    yield lambda product, flash: _native.set_node_work(product, product, flash)
    _native.set_node_work(*before)


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("mode", ["sparse", "off"])
def test_bounded_nodes_compute_the_same(
    narrow: TinyModel, small_nodes: Callable[[float, float], object], mode: str, kv_type: str
) -> None:
    """Flash attention and logits in parts of tokens, then of heads too: the same bits, more nodes.

    On the CPU alone, as the next two: a GPU's work is stopped between the steps of a batch.
    """
    tokens = random_tokens(250, seed=44)

    def run() -> tuple[np.ndarray, int]:
        with narrow.open(delta_mode=mode, kv_type=kv_type, n_batch=250, n_gpu_layers=0) as m:
            y = np.concatenate([m.eval(tokens[:30]), m.eval(tokens[30:])])
            return y, m.session.counts["nodes"]

    expected, n_whole = run()
    # wq has 8,192 weights, so the batch stays whole; the output 20,480, so its product comes in tiles of 64
    # tokens. Flash attention of 4 heads of 32 and 256 positions takes 65,536 a token.
    small_nodes(256 * 8_192, 64 * 65_536)
    found, n_tokens = run()
    np.testing.assert_array_equal(found, expected)
    small_nodes(256 * 8_192, 16 * 65_536)
    heads, n_heads = run()
    np.testing.assert_array_equal(heads, expected)
    assert n_whole < n_tokens < n_heads


def test_batches_are_bounded_by_the_largest_matrix(
    wide: TinyModel, small_nodes: Callable[[float, float], object]
) -> None:
    """In whole tiles of 64 tokens, never fewer; a smaller n_batch is kept."""
    largest = 64 * 128  # wq; the FFN's are 64 x 96
    for work, asked, n_batch in (
        (largest * 200, 512, 192),
        (largest * 200, 100, 100),
        (largest, 512, 64),
        (1e18, 512, 256),
    ):
        small_nodes(work, 1e18)
        with wide.open(n_batch=asked, n_gpu_layers=0) as m:
            assert m.session.n_batch == n_batch


def test_batches_are_bounded_by_the_deltas(wide: TinyModel) -> None:
    """Of the experts that a token uses, where they are summed; the least that is left is a tile."""
    names = [t for t in _native.GgufFile(str(wide.gguf)).tensors if t.name.endswith("_delta.col")]
    positions = max(t.shape[0] for t in names)
    before = _native.set_node_work(1e18, 1e18, 1e18, positions * 2 * 140)
    try:
        for mode, n_batch in (("sparse", 128), ("gain", 256), ("off", 256)):
            with wide.open(n_batch=512, delta_mode=mode, n_gpu_layers=0) as m:
                assert m.session.n_batch == n_batch
        _native.set_node_work(1e18, 1e18, 1e18, 1)
        with wide.open(n_batch=512, n_gpu_layers=0) as m:
            assert m.session.n_batch == 64
    finally:
        _native.set_node_work(*before)


@pytest.fixture(scope="module")
def long(workshop: Path) -> TinyModel:
    """Slow enough to be cancelled in its prompt."""
    base = {
        "hidden": 128, "inner": 256, "layers": 4, "heads": 2, "heads_kv": 1, "head_dim": 64,
    }  # fmt: skip
    return make_model(workshop / "cancel", base=base, srde={"density": 0.05})


def rss() -> int:
    """Resident bytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def handles() -> tuple[int, int, int]:
    """Open files, mapped GGUF files, threads."""
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        Path("/proc/self/maps").read_text().count(".gguf"),
        len(list(Path("/proc/self/task").iterdir())),
    )


def check_no_leak(once: Callable[[int], None], rounds: int, bytes_per_round: int) -> None:
    """Rounds after a warm-up: the same handles; less growth than a context or model would leave."""
    for i in range(20):
        once(i)
    gc.collect()
    before, held = handles(), rss()
    for i in range(rounds):
        once(i)
    gc.collect()
    assert handles() == before
    assert rss() - held < bytes_per_round * rounds / 10


def test_1000_contexts_leave_nothing(wide: TinyModel) -> None:
    """Made, used, some cancelled or overfull, closed. One's cache alone is 196,608 bytes."""
    with wide.open(kv_type="f16") as model:

        def once(i: int) -> None:
            with model.new_context() as c:
                c.session.decode([1, 8, 9])
                if i % 4 == 0:
                    generation = c.start([1, 8, 9, 10], seed=1)
                    next(generation)
                    c.cancel()
                    with pytest.raises(Cancelled):
                        list(generation)
                elif i % 4 == 1:
                    c.load_state(c.save_state())
                elif i % 4 == 2:
                    with pytest.raises(ValueError, match="kv_type"):
                        c.new_context(kv_type="none")  # type: ignore[arg-type]

        check_no_leak(once, 1000, 196_608)


def test_an_abandoned_generation_lets_go_of_its_context(wide: TinyModel) -> None:
    """At once, not when the garbage collector comes by: a context may be gigabytes."""
    messages = [{"role": "user", "content": "the rain"}]
    uses: list[Callable[[Sardine], object]] = [
        lambda m: m.start(PROMPT),
        lambda m: next(m.start(PROMPT, seed=1)),
        lambda m: next(iter(m.stream_generate(PROMPT, seed=1))),
        lambda m: next(iter(m.generate_tokens(PROMPT, seed=1))),
        lambda m: list(m.generate_tokens(PROMPT, seed=1, max_tokens=2)),
        lambda m: next(iter(m.create_chat_completion(messages, stream=True, seed=1))),
        lambda m: next(iter(m("the", stream=True, seed=1))),
        lambda m: m.create_chat_completion(messages, max_tokens=2),
    ]

    def once(use: Callable[[Sardine], object]) -> None:
        m = wide.open()
        use(m)
        m.close()

    for use in uses:  # what stays for all contexts begins: OpenMP's threads, the template's process
        once(use)
    gc.collect()
    before = handles()
    gc.disable()
    try:
        for use in uses:
            once(use)
            assert handles() == before
    finally:
        gc.enable()


def test_100_models_leave_nothing(wide: TinyModel) -> None:
    """Each reads the whole file and has two contexts."""

    def once(i: int) -> None:
        with wide.open() as m:
            other = m.new_context()
            m.session.decode([1, 8, 9])
            other.session.decode([1, 8])
            if i % 2:
                list(m.generate([1, 9], max_tokens=3))

    check_no_leak(once, 100, wide.gguf.stat().st_size)
