"""The class Sardine: arguments, tokens, evaluation, errors."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sardine_gguf
from make_checkpoint import srde_checkpoint, tiny_base
from models import VOCAB, TinyModel, random_tokens
from sardine_gguf import ContextOverflow, FormatError, InsufficientMemory, Sardine
from sardine_gguf.convert import convert

TEXTS = ["the rain", "", " \n\t", "naïve 日本 😀", "<s>[INST]x[/INST]", "\x00\x7f"]


def test_public_names() -> None:
    """What __all__ names is there, and errors also are what Python code expects."""
    for name in sardine_gguf.__all__:
        assert hasattr(sardine_gguf, name)
    assert issubclass(FormatError, ValueError)
    assert issubclass(ContextOverflow, ValueError)
    assert issubclass(InsufficientMemory, MemoryError)
    assert issubclass(sardine_gguf.BusyError, RuntimeError)
    parameters = inspect.signature(Sardine).parameters
    assert next(iter(parameters)) == "path"
    assert all(
        p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for n, p in parameters.items() if n != "path"
    )


def test_facts(tiny: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    """What a model says about itself."""
    with Sardine(tiny.gguf, verbose=True) as m:
        assert m.n_ctx == 256
        assert m.n_vocab == VOCAB
        assert m.n_tokens == 0
        assert m.delta_mode == "sparse"
        assert m.expert_names == ["math", "logic", "code", "science", "planning"]
        assert m.metadata["sardine.expert_used_count"] == 3
        assert len(m.metadata["tokenizer.ggml.tokens"]) == VOCAB
        assert m.metadata["tokenizer.ggml.add_bos_token"] is True
        for word in ("sparse", "math", "256", "mistral3"):
            assert word in m.describe()
        assert m.describe() in capsys.readouterr().err


def test_delta_mode_of_the_file(tiny: TinyModel) -> None:
    """The file's mode unless another is asked for."""
    path = tiny.converted("gain.gguf", outtype="f32", delta_mode="gain")
    for asked, runs in ((None, "gain"), ("sparse", "sparse"), ("off", "off")):
        with Sardine(path, delta_mode=asked) as m:  # type: ignore[arg-type]
            assert m.delta_mode == runs


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tiny: TinyModel, text: str) -> None:
    """Text to tokens and back, with and without BOS and special tokens."""
    with tiny.open() as m:
        plain = m.tokenize(text, add_bos=False)
        assert m.tokenize(text) == [1, *plain]
        assert m.detokenize(plain) == text
        assert m.detokenize([1, *plain]) == text
        assert m.detokenize([1, *plain], special=True) == "<s>" + text
        special = m.tokenize(text, add_bos=False, special=True)
        assert m.detokenize(special, special=True) == text
        if text.startswith("<s>"):
            assert special == [1, 3, *m.tokenize("x", add_bos=False), 4]
            assert m.detokenize(special) == "x"
            assert not {1, 3, 4} & set(plain)
        assert m.detokenize(np.array(plain, np.int64)) == text  # type: ignore[arg-type]


def test_lone_surrogates_and_broken_tokens(tiny: TinyModel) -> None:
    """Text that is no UTF-8 and half characters become replacements, not errors."""
    with tiny.open() as m:
        assert m.detokenize(m.tokenize("a\ud800b", add_bos=False)) == "a?b"
        half = m.tokenize("😀", add_bos=False)[:2]
        assert m.detokenize(half) == "\ufffd"


def test_eval_shape_and_types(tiny: TinyModel) -> None:
    """float32 [n, vocab] for lists, tuples, ranges and arrays; own memory."""
    with tiny.open() as m:
        first = m.eval([1, 8, 9])
        assert first.shape == (3, VOCAB)
        assert first.dtype == np.float32
        copy = first.copy()
        for tokens in ((8, 9), range(8, 12), np.array([8], np.int64), np.array([9], np.uint8)):
            assert m.eval(tokens).shape == (len(tokens), VOCAB)  # type: ignore[arg-type]
        np.testing.assert_array_equal(first, copy)
        assert m.n_tokens == 3 + 2 + 4 + 1 + 1
        ids, weights = m.routing()
        assert ids.shape == weights.shape == (3, 1, 3)
        assert (ids.dtype, weights.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(
    "tokens", [[], [-1], [VOCAB], [1, VOCAB, 2], [2**31 - 1], [2**31], [2**32 + 1], [-(2**31)]]
)
def test_bad_token_ids(tiny: TinyModel, tokens: list[int]) -> None:
    """ValueError; the context stays as it was."""
    with tiny.open() as m:
        m.eval([1, 8])
        with pytest.raises(ValueError, match="token"):
            m.eval(tokens)
        assert m.n_tokens == 2


@pytest.mark.parametrize("tokens", [["a"], [None], "ab", [[1]], 5])
def test_tokens_of_wrong_types(tiny: TinyModel, tokens: Any) -> None:
    """TypeError or ValueError, as int() has it."""
    with tiny.open() as m, pytest.raises((TypeError, ValueError)):
        m.eval(tokens)


def test_bad_ids_elsewhere(tiny: TinyModel) -> None:
    """detokenize and generate refuse them too."""
    with tiny.open() as m:
        for bad in (-1, VOCAB, 2**31):
            with pytest.raises(ValueError, match=r"token|vocabulary"):
                m.detokenize([bad])
            with pytest.raises(ValueError, match=r"token|vocabulary"):
                list(m.generate([1, bad], max_tokens=1))


def test_context_overflow(tiny: TinyModel) -> None:
    """Before anything is computed, and the context is as it was: the next eval equals one without it."""
    tokens = random_tokens(60)
    with tiny.open(n_ctx=64) as m, tiny.open(n_ctx=64) as other:
        m.eval(tokens)
        other.eval(tokens)
        with pytest.raises(ContextOverflow, match=r"64.*60"):
            m.eval([8] * 5)
        assert m.n_tokens == 60
        np.testing.assert_array_equal(m.eval([8] * 4), other.eval([8] * 4))
        with pytest.raises(ContextOverflow):
            m.eval([8])
        with pytest.raises(ContextOverflow):
            m.eval([8] * 3_000_000)
        m.reset()
        with pytest.raises(ContextOverflow, match="64"):
            m.generate([8] * 65)
        assert m.n_tokens == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", -1),
        ("n_ctx", 2**31),
        ("n_ctx", 2**40),
        ("n_batch", 0),
        ("n_batch", -5),
        ("n_threads", 0),
        ("n_threads", -2),
        ("n_threads", 100_000),
        ("kv_type", "q8_0"),
        ("kv_type", ""),
        ("delta_mode", "dense"),
        ("delta_mode", "SPARSE"),
        ("n_gpu_layers", -2),
        ("n_gpu_layers", "some"),
    ],
)
def test_bad_arguments(tiny: TinyModel, name: str, value: Any) -> None:
    """ValueError that names the argument and the value."""
    with pytest.raises(ValueError, match=name) as caught:
        Sardine(tiny.gguf, **{name: value})
    assert str(value) in str(caught.value)


def test_insufficient_memory(tiny: TinyModel) -> None:
    """The largest n_ctx is refused with the bytes it needs, before it is allocated."""
    with pytest.raises(InsufficientMemory, match=r"2147483647.*[0-9]{11,} bytes"):
        Sardine(tiny.gguf, n_ctx=2**31 - 1, kv_type="f32")


def test_modes_need_experts(tiny: TinyModel, workshop: Path) -> None:
    """A plain base runs off, and says so when asked for more."""
    from sardine_gguf.convert import write_base

    path = workshop / "only-base.gguf"
    if not path.exists():
        write_base(tiny.base, path, "f32")
    with Sardine(path) as m:
        assert (m.delta_mode, m.expert_names) == ("off", [])
        with pytest.raises(ValueError, match="off"):
            m.routing()
    with pytest.raises(ValueError, match=r"sparse.*plain base"):
        Sardine(path, delta_mode="sparse")


def test_paths(tiny: TinyModel, tmp_path: Path) -> None:
    """Missing files, folders, FIFOs, unreadable names; str and Path work."""
    with pytest.raises(FileNotFoundError) as caught:
        Sardine(tmp_path / "no.gguf")
    assert caught.value.filename == str(tmp_path / "no.gguf")
    with pytest.raises(IsADirectoryError):
        Sardine(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="regular file"):
        Sardine(tmp_path / "fifo")
    link = tmp_path / "übung 日本.gguf"
    link.symlink_to(tiny.gguf)
    with Sardine(str(link)) as m:
        assert m.model.path == str(link)
    with pytest.raises((TypeError, ValueError)):
        Sardine(3)  # type: ignore[arg-type]


def test_path_with_nul(tiny: TinyModel) -> None:
    """Not cut at the NUL byte, as Python's own open() has it."""
    with pytest.raises(ValueError, match="null"):
        Sardine(f"{tiny.gguf}\0junk")


def test_path_that_is_not_utf8(tiny: TinyModel, tmp_path: Path) -> None:
    """Any file name of the system opens."""
    link = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    link.symlink_to(tiny.gguf)
    with Sardine(link) as m:
        assert m.eval([1]).shape == (1, VOCAB)
        m.describe()


def test_closed(tiny: TinyModel) -> None:
    """Every call on a closed model says so; closing twice is fine."""
    with Sardine(tiny.gguf) as m:
        m.eval([1])
        logits = m.eval([8])
        expected = logits.copy()
    m.close()
    np.testing.assert_array_equal(logits, expected)
    calls = [
        lambda: m.eval([1]),
        lambda: m.tokenize("a"),
        lambda: m.detokenize([8]),
        lambda: m.generate("a"),
        lambda: m.create_chat_completion([{"role": "user", "content": "a"}]),
        lambda: m.routing(),
        lambda: m.reset(),
        lambda: m.cancel(),
        lambda: m.n_ctx,
        lambda: m.n_tokens,
        lambda: m.n_vocab,
        lambda: m.expert_names,
        lambda: m.describe(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


def test_closed_while_generating(tiny: TinyModel) -> None:
    """A generation in progress raises at its next token, though nothing else holds the model."""
    m = tiny.open()
    pieces = m.stream_generate([1, 20, 30], max_tokens=50, seed=1)
    next(pieces)
    m.close()
    del m
    with pytest.raises(ValueError, match="closed"):
        next(pieces)
    assert next(pieces, None) is None


def test_without_tokenizer(workshop: Path) -> None:
    """Ids work; text is refused with the reason."""
    folder = workshop / "silent"
    tiny_base(folder / "base", tokenizer=False)
    srde_checkpoint(folder / "srde.pt", folder / "base")
    convert(folder / "base", folder / "srde.pt", folder / "model.gguf", outtype="f32", n_threads=2)
    with Sardine(folder / "model.gguf") as m:
        assert m.eval([1, 8]).shape == (2, VOCAB)
        assert len(list(m.generate([1, 8], max_tokens=2))) <= 2
        for call in (
            lambda: m.tokenize("a"),
            lambda: m.generate("a"),
            lambda: m.detokenize([9]),
            lambda: list(m.stream_generate([1, 8], max_tokens=2)),
        ):
            with pytest.raises(ValueError, match="no tokenizer"):
                call()
        with pytest.raises(ValueError, match=r"template|tokenizer"):
            m.create_chat_completion([{"role": "user", "content": "a"}])


def test_two_models_share_nothing(tiny: TinyModel) -> None:
    """Two contexts on one file do not disturb each other."""
    tokens = random_tokens(40)
    with tiny.open() as a, tiny.open() as b:
        expected = a.eval(tokens)
        a.reset()
        parts = []
        for t in tokens:
            parts.append(a.eval([t]))
            b.eval([t + 1 if t + 1 < VOCAB else t])
        assert np.abs(np.concatenate(parts) - expected).max() < 1e-3
