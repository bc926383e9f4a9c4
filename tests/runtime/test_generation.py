"""generate and stream_generate: determinism, stops, whole characters, the token loop's ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TinyModel, random_tokens, text_of
from sardine_gguf import ContextOverflow, SamplingOptions, Sardine
from sardine_gguf.generation import TextFilter

PROMPT = random_tokens(12, seed=21)


def test_greedy_is_argmax(tiny: TinyModel) -> None:
    """temperature 0 takes the largest logit of eval at every step."""
    with tiny.open() as m:
        generation = m.start(PROMPT, max_tokens=30, temperature=0)
        text = "".join(piece for _, piece in generation)
        m.reset()
        logits = m.eval([*PROMPT, *generation.tokens])
        expected = logits.argmax(1)[len(PROMPT) - 1 : -1]
        assert generation.tokens == expected.tolist()
        assert m.detokenize([t for t in generation.tokens if t != 2]) == text


def test_score(tiny: TinyModel) -> None:
    """Log probabilities by eval's logits; of a text, without the BOS before it."""
    tokens = random_tokens(200, seed=3)
    with tiny.open() as m:
        scored = m.score(tokens, top=2)
        m.reset()
        logits = m.eval(tokens).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        skipped = int(tokens[0] == m.token_bos())
        assert len(scored) == len(tokens) - skipped
        assert scored[0].logprob is None
        found = [t.logprob for t in scored[1:]]
        assert found == pytest.approx(
            [expected[i, t] for i, t in enumerate(tokens[1:])][skipped:], abs=0.02
        )
        assert all(t.top[0][1] >= t.top[1][1] for t in scored[1:])
        assert "".join(t.text for t in m.score("If it rains, ")) == "If it rains, "
        assert m.score("") == []
        with pytest.raises(ContextOverflow):
            m.score([5] * (m.n_ctx + 1))


def test_seeds(tiny: TinyModel) -> None:
    """The same seed gives the same text, another one another, whatever ran before."""
    with tiny.open() as m:
        texts = [text_of(m, PROMPT, max_tokens=30, temperature=1.5, seed=s) for s in (5, 6, 5)]
        m.eval([8, 9])
        texts.append(text_of(m, PROMPT, max_tokens=30, temperature=1.5, seed=5))
        assert texts[0] == texts[2] == texts[3]
        assert texts[0] != texts[1]
        assert len({text_of(m, PROMPT, max_tokens=30, temperature=1.5) for _ in range(4)}) > 1
    with tiny.open(seed=5) as m:
        assert text_of(m, PROMPT, max_tokens=30, temperature=1.5) == texts[0]


def test_stream_joins_to_the_text(tiny: TinyModel) -> None:
    """Pieces, none empty, joined equal generate's text."""
    with tiny.open() as m:
        for seed in range(5):
            options = {"max_tokens": 60, "temperature": 2.0, "seed": seed}
            pieces = list(m.stream_generate(PROMPT, **options))  # type: ignore[arg-type]
            assert all(pieces)
            assert "".join(pieces) == text_of(m, PROMPT, **options)  # type: ignore[arg-type]


def test_max_tokens(tiny: TinyModel) -> None:
    """Counts, the context's end, 0, negative for no limit; finish_reason says length."""
    with tiny.open(n_ctx=40) as m:
        for n in (0, 1, 5):
            g = m.start(PROMPT, max_tokens=n, temperature=0)
            text = "".join(p for _, p in g)
            assert (len(g.tokens), g.finish_reason) == (n, "length")
            assert bool(text) == (n > 0)
            assert g.timings.completion_tokens == n
            assert g.timings.prompt_tokens == len(PROMPT)
        full = m.start([8] * 40, temperature=0)
        list(full)
        assert (len(full.tokens), full.finish_reason) == (1, "length")
        rest = m.start(PROMPT, temperature=5.0, seed=3, top_k=0, top_p=1.0, min_p=0.0)
        list(rest)
        assert rest.finish_reason in ("length", "stop")
        assert m.n_tokens <= 40
        text = "".join(p for _, p in m.start(PROMPT, temperature=0))
        assert "".join(p for _, p in m.start(PROMPT, max_tokens=-1, temperature=0)) == text


def test_end_token_stops(tiny: TinyModel) -> None:
    """EOS ends the text with the reason stop and is not part of it."""
    with tiny.open() as m:
        for seed in range(200):
            g = m.start(
                PROMPT, max_tokens=200, temperature=3.0, top_k=0, top_p=1, min_p=0, seed=seed
            )
            text = "".join(p for _, p in g)
            if g.finish_reason == "stop":
                assert g.tokens[-1] == 2
                assert "</s>" not in text
                assert 2 not in g.tokens[:-1]
                return
    pytest.fail("no seed drew the end token")


def test_stop_strings(tiny: TinyModel) -> None:
    """Cut before the first stop string, inside of a token and across tokens."""
    with tiny.open() as m:
        g = m.start(PROMPT, max_tokens=40, temperature=0)
        full = "".join(p for _, p in g)
        assert len(full) > 10
        for begin, length in ((0, 1), (3, 2), (5, 4), (len(full) - 2, 2)):
            stop = full[begin : begin + length]
            found = m.start(PROMPT, max_tokens=40, temperature=0, stop=stop)
            assert "".join(p for _, p in found) == full[: full.index(stop)]
            assert found.finish_reason == "stop"
        assert text_of(m, PROMPT, max_tokens=40, temperature=0, stop=["\0never"]) == full
        with pytest.raises(ValueError, match="empty"):
            text_of(m, PROMPT, stop=["a", ""])


def test_empty_prompts(tiny: TinyModel) -> None:
    """Empty text begins with BOS; no ids at all are refused."""
    with tiny.open() as m:
        found = m.generate("", max_tokens=3, temperature=0)
        assert found == text_of(m, [1], max_tokens=3, temperature=0)
        with pytest.raises(ValueError, match="empty"):
            m.generate([])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.5),
        ("top_p", -1.0),
        ("min_p", 2.0),
        ("min_p", float("nan")),
        ("seed", 2**32),
    ],
)
def test_bad_sampling(tiny: TinyModel, name: str, value: float) -> None:
    """ValueError that names the option, before anything is evaluated."""
    with tiny.open() as m:
        with pytest.raises(ValueError, match=name):
            m.generate(PROMPT, **{name: value})
        assert m.n_tokens == 0
        with pytest.raises(TypeError):
            m.generate(PROMPT, temprature=0.5)  # type: ignore[call-arg]


def test_sampling_distribution(tiny: TinyModel) -> None:
    """Frequencies of one sampled token follow softmax(logits / temperature) within 5 sigma."""
    with tiny.open() as m:
        logits = m.eval(PROMPT)[-1].astype(np.float64) / 0.7
        p = np.exp(logits - logits.max())
        p /= p.sum()
        sampler = SamplingOptions(temperature=0.7, top_k=0, top_p=1, min_p=0, seed=1).sampler(
            m.model, m.n_ctx
        )
        n = 20_000
        counts = np.bincount([sampler.sample(m.session) for _ in range(n)], minlength=len(p))
        assert (abs(counts - n * p) <= 5 * np.sqrt(n * p) + 5).all()
        top = SamplingOptions(temperature=0.7, top_k=3, top_p=1, min_p=0, seed=1).sampler(
            m.model, m.n_ctx
        )
        drawn = {top.sample(m.session) for _ in range(300)}
        assert drawn <= set(np.argsort(-logits)[:3].tolist())


def test_early_exit_keeps_the_context(tiny: TinyModel) -> None:
    """Leaving a stream leaves a context that can go on."""
    with tiny.open() as m:
        stream = m.stream_generate(PROMPT, max_tokens=50, temperature=0)
        list(itertools.islice(stream, 2))
        stream.close()  # type: ignore[attr-defined]
        used = m.session.tokens
        assert used[: len(PROMPT)] == PROMPT
        logits = m.eval([9])
        with tiny.open() as fresh:
            expected = fresh.eval([*used, 9])[-1:]
        assert np.abs(logits - expected).max() < 1e-3


def test_callback_errors_pass_through(tiny: TinyModel) -> None:
    """An exception in the consumer leaves the model usable."""
    with tiny.open() as m:

        def consume() -> None:
            for _ in m.stream_generate(PROMPT, max_tokens=50, seed=1):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            consume()
        assert text_of(m, PROMPT, max_tokens=5, temperature=0)


# ---- TextFilter ----


def run(data: bytes, sizes: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """Pieces of bytes pushed in chunks of some sizes, and whether a stop string was found."""
    f = TextFilter(stop)
    out, at = [], 0
    for n in itertools.cycle(sizes):
        if at >= len(data) or f.stopped:
            break
        out.append(f.push(data[at : at + n]))
        at += n
    out.append(f.push(b"", final=True))
    return out, f.stopped


def test_split_emoji() -> None:
    """Nothing appears before the character is whole."""
    f = TextFilter()
    data = "😀".encode()
    assert [f.push(data[i : i + 1]) for i in range(4)] == ["", "", "", "😀"]
    assert f.push(b"", final=True) == ""


def test_dangling_tail() -> None:
    """A cut character at the end becomes one replacement; broken bytes inside do not eat their neighbours."""
    assert "".join(run(b"ab\xf0\x9f\x98", [1])[0]) == "ab\ufffd"
    assert "".join(run(b"a\xffb\xe2\x82c", [1])[0]) == "a\ufffdb\ufffdc"


@given(st.binary(max_size=40), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_any_bytes(data: bytes, sizes: list[int]) -> None:
    """Joined pieces equal the bytes decoded at once."""
    assert "".join(run(data, sizes)[0]) == data.decode("utf-8", "replace")


@given(
    st.text("ab\n😀", max_size=30),
    st.lists(st.text("ab\n😀", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_any_stop(text: str, stop: list[str], sizes: list[int]) -> None:
    """However the bytes arrive, no stop string and no part behind one is shown."""
    pieces, stopped = run(text.encode(), sizes, tuple(stop))
    joined = "".join(pieces)
    assert text.startswith(joined)
    assert stopped == any(s in text for s in stop)
    if not stopped:
        assert joined == text
    else:
        assert any(text[len(joined) :].startswith(s) for s in stop)
        assert not any(s in joined for s in stop)


def test_model_default_sampling(tiny: TinyModel) -> None:
    """Defaults are llama.cpp's, from the file where it has them."""
    with Sardine(tiny.gguf) as m:
        assert m.sampling == SamplingOptions()
        assert m.sampling.override(top_k=3).top_k == 3
        assert m.sampling.override(temperature=0.0).temperature == 0.0
