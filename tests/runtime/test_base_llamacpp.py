"""The base alone against libllama through llama_cpp, on the same plain GGUF files.

Both run ggml's kernels on the same bytes with flash attention and f16 keys and values, so the results are
equal to the bit where libllama does not rearrange the weights. It does for q4_k_m, whose bound is libllama's
own distance between one batch and single tokens (3e-4 for this model).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf_mutate import Gguf, Tensor
from make_checkpoint import srde_checkpoint, tiny_base
from models import nmse, random_tokens
from numpy.typing import NDArray
from sardine_gguf import Sardine
from sardine_gguf.convert import convert, write_base
from tokenizers import Tokenizer

N_CTX = 256
TOKENS = random_tokens(180, seed=11)
# Not 0, because libllama may rearrange other types on other processors.
BOUNDS = {"f32": 1e-9, "f16": 1e-5, "bf16": 1e-5, "q8_0": 1e-5, "q4_k_m": 1e-3}


@pytest.fixture(scope="module")
def base(workshop: Path) -> Path:
    """A folder with rows of 256, so that q4_k_m has its own types."""
    options: dict[str, Any] = {"hidden": 256, "inner": 256, "heads": 4, "head_dim": 32}
    return tiny_base(workshop / "plain", std=0.05, **options)


@pytest.fixture(scope="module")
def plain(base: Path) -> dict[str, Path]:
    """Plain base files of each type."""
    out = {kind: base.with_name(f"plain-{kind}.gguf") for kind in BOUNDS}
    for kind, path in out.items():
        write_base(base, path, kind, n_threads=2)
    return out


# Single tokens and batches differ by this NMSE where libllama rearranges the weights.
TIES = {"q4_k_m": 1e-3}


def open_llama(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        str(path),
        n_ctx=N_CTX,
        n_batch=N_CTX,
        n_threads=1,
        logits_all=True,
        flash_attn=True,
        verbose=False,
    )


def llama_logits(llama: llama_cpp.Llama, tokens: list[int]) -> NDArray[np.float32]:
    """[n_tokens, n_vocab]"""
    llama.reset()
    llama.eval(tokens)
    return np.array(llama.scores[: len(tokens)], np.float32)


def llama_greedy(llama: llama_cpp.Llama, prompt: list[int], n: int) -> list[int]:
    llama.reset()
    llama.eval(prompt)
    out: list[int] = []
    while True:
        out.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        if len(out) == n:
            return out
        llama.eval([out[-1]])


def greedy(m: Sardine, prompt: list[int], n: int) -> list[int]:
    """n tokens, whether one of them ends the text or not."""
    m.reset()
    logits = m.eval(prompt)[-1]
    out: list[int] = []
    while True:
        out.append(int(logits.argmax()))
        if len(out) == n:
            return out
        logits = m.eval([out[-1]])[0]


@pytest.fixture(params=BOUNDS)
def pair(request: pytest.FixtureRequest, plain: dict[str, Path]) -> Iterator[Any]:
    """(type, ours, theirs)"""
    llama = open_llama(plain[request.param])
    with Sardine(plain[request.param], n_ctx=N_CTX, n_threads=1) as ours:
        yield request.param, ours, llama
    llama.close()


def test_logits_and_greedy_tokens(pair: tuple[str, Sardine, llama_cpp.Llama]) -> None:
    """NMSE within the type's bound and 64 equal greedy tokens."""
    kind, ours, theirs = pair
    assert ours.delta_mode == "off"
    assert ours.expert_names == []
    expected = llama_logits(theirs, TOKENS)
    assert nmse(ours.eval(TOKENS), expected) <= BOUNDS[kind]
    theirs_greedy = llama_greedy(theirs, TOKENS[:40], 64)
    if kind not in TIES:
        assert greedy(ours, TOKENS[:40], 64) == theirs_greedy
        return
    # Along their tokens, ours may only prefer a token that lies as near to theirs as the kinds' error.
    tokens = TOKENS[:40] + theirs_greedy
    expected = llama_logits(theirs, tokens)
    ours.reset()
    chosen = np.array([ours.eval([t])[0].argmax() for t in tokens])
    gap = expected.max(1) - expected[np.arange(len(tokens)), chosen]
    assert gap.max() <= 6 * (2 * TIES[kind]) ** 0.5 * expected.std()


def test_off_equals_the_plain_file(plain: dict[str, Path], base: Path, workshop: Path) -> None:
    """A SaRDinE file in mode off gives its base's logits to the bit, from a folder or a GGUF base."""
    srde = srde_checkpoint(workshop / "plain.pt", base)
    convert(plain["q8_0"], srde, workshop / "on-gguf.gguf", n_threads=2)
    options = {"outtype": "q8_0", "n_threads": 2, "compensation": "none"}
    convert(base, srde, workshop / "on-hf.gguf", **options)
    with Sardine(plain["q8_0"], n_ctx=N_CTX) as m:
        expected = m.eval(TOKENS)
    for name in ("on-gguf.gguf", "on-hf.gguf"):
        with Sardine(workshop / name, n_ctx=N_CTX, delta_mode="off") as m:
            np.testing.assert_array_equal(m.eval(TOKENS), expected)


def renamed_to_llama(path: Path, out: Path, *, biases: bool, freqs: bool) -> Path:
    """The same weights under the architecture `llama`, with linear or per-dimension rope scaling."""
    g = Gguf.parse(path.read_bytes())
    keep = []
    for e in g.entries:
        e.key = e.key.replace(b"mistral3.", b"llama.")
        if b"rope.scaling" not in e.key and b"temperature_scale" not in e.key:
            keep.append(e)
    g.entries = keep
    g.set("general.architecture", "str", "llama")
    if not freqs:
        g.set("llama.rope.scaling.type", "str", "linear")
        g.set("llama.rope.scaling.factor", "f32", 4.0)
    rng = np.random.default_rng(3)
    n_layers = g.value("llama.block_count")
    head_dim = g.value("llama.attention.key_length")

    def vector(name: str, values: NDArray[Any]) -> None:
        data = values.astype("<f4").tobytes()
        g.tensors.append(Tensor(name.encode(), [len(values)], 0, data))

    for i in range(n_layers if biases else 0):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            n = g.tensor(f"blk.{i}.{part}.weight").ne[1]
            vector(f"blk.{i}.{part}.bias", 0.1 * rng.standard_normal(n))
    if freqs:
        vector("rope_freqs.weight", rng.uniform(1, 8, head_dim // 2))
    out.write_bytes(g.build())
    return out


@pytest.mark.parametrize(("biases", "freqs"), [(False, False), (True, False), (True, True)])
def test_arch_llama(plain: dict[str, Path], biases: bool, freqs: bool, tmp_path: Path) -> None:
    """A llama base with and without biases, with rope_freqs.weight."""
    path = renamed_to_llama(plain["f16"], tmp_path / "llama.gguf", biases=biases, freqs=freqs)
    theirs = open_llama(path)
    expected = llama_logits(theirs, TOKENS)
    theirs.close()
    with Sardine(path, n_ctx=N_CTX, n_threads=1) as ours:
        assert nmse(ours.eval(TOKENS), expected) <= BOUNDS["f16"]
    with Sardine(plain["f16"], n_ctx=N_CTX, n_threads=1) as other:
        assert nmse(other.eval(TOKENS), expected) > 1e-3  # the changes matter


TEXTS = [
    "",
    " ",
    "the rain in the north is on then another",
    "  two  spaces\tand\ttabs \n\n newlines\r\n\r\nend ",
    "1234567890 3.14159 1,000,000 0x1F",
    "naïve café Straße ÆØÅ ñandú",
    "日本語のテキスト 中文 한국어",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji",
    "e\u0301 combining \u200b zero width \ufeff bom \u00a0 nbsp",
    "def f(x):\n    return x ** 2  # comment\n",
    "<s>[INST] not special [/INST]</s><pad>",
    "it's they'll I'VE don't",
    "a" * 500,
    "\x00\x01\x7f control",
    "ﬀ ﬁ ﬂ ½ ² ™ ﷽",
    "עברית العربية हिन्दी ไทย",
]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("add_bos", [False, True])
def test_tokenization(plain: dict[str, Path], special: bool, add_bos: bool) -> None:
    """The ids of llama_cpp, and the text back again."""
    theirs = open_llama(plain["f32"])
    with Sardine(plain["f32"], n_ctx=32) as ours:
        for text in TEXTS:
            found = ours.tokenize(text, add_bos=add_bos, special=special)
            assert found == theirs.tokenize(text.encode(), add_bos=add_bos, special=special), text
            assert ours.detokenize(found[add_bos:], special=special) == text
            if special and text.startswith("<s>"):
                assert found[add_bos : add_bos + 2] == [1, 3]
    theirs.close()


@pytest.mark.parametrize("text", TEXTS)
def test_tokenization_as_transformers(plain: dict[str, Path], base: Path, text: str) -> None:
    """The ids of the folder's own tokenizer."""
    expected = Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids
    with Sardine(plain["f32"], n_ctx=32) as ours:
        assert ours.tokenize(text, add_bos=True, special=True) == expected
