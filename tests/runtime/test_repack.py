"""Weights copied into ggml's interleaved layouts: libllama's own results, and near those of mapped weights.

libllama rearranges weights by default, so that a Q4_K_M file gives its logits to the bit here, for batches of
so few tokens that they are multiplied with the copies; larger ones give those of libllama without copies.
Mapped weights round activations the same way and sum in another order, which the next layer's rounding to 8
bits amplifies: the bound is libllama's own distance between a batch and single tokens of this model
(test_base_llamacpp.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from make_checkpoint import srde_checkpoint, tiny_base
from models import nmse, random_tokens
from numpy.typing import NDArray
from sardine_gguf import InsufficientMemory, Sardine, _native
from sardine_gguf.convert import convert, write_base
from test_base_llamacpp import open_llama

N_CTX = 256
TOKENS = random_tokens(180, seed=12)
MAX_NMSE = 1e-3
N_LAYERS = 3
FEW = min(_native.repacked_tokens(), len(TOKENS))


@pytest.fixture(scope="module")
def base(workshop: Path) -> Path:
    """Rows of 256, whole blocks of Q4_K."""
    return tiny_base(
        workshop / "repack", std=0.05, hidden=256, inner=512, heads=4, head_dim=64, layers=N_LAYERS
    )


@pytest.fixture(scope="module")
def plain(base: Path, workshop: Path) -> Path:
    """The base in q4_k_m."""
    path = workshop / "repack-q4_k_m.gguf"
    write_base(base, path, "q4_k_m", n_threads=2)
    return path


@pytest.fixture(scope="module")
def experts(base: Path, plain: Path, workshop: Path) -> Path:
    """The same with experts."""
    path = workshop / "repack-experts.gguf"
    convert(plain, srde_checkpoint(workshop / "repack.pt", base), path, n_threads=2)
    return path


@pytest.fixture(autouse=True, scope="module")
def layouts(plain: Path) -> None:
    """There are some on x86 with AVX2 and on ARM with dot products, and maybe nowhere else."""
    with Sardine(plain, repack=True) as m:
        copies, _ = m.model.repacked
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if not flags & {"avx2", "asimddp"}:
        pytest.skip("this processor has no interleaved layouts")
    assert copies > 0


@pytest.fixture
def free() -> Iterator[None]:
    """Puts back what the runtime believes to be free."""
    yield
    _native.pretend_available_memory(0)


def in_steps(evaluate: Callable[[list[int]], object], step: int) -> list[Any]:
    """What each batch of so many of the tokens gives."""
    return [evaluate(TOKENS[i : i + step]) for i in range(0, len(TOKENS), step)]


def libllama(path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    """Its logits [n_tokens, n_vocab]: with copies for as few tokens as there are copies for here."""
    default = llama_cpp.llama_cpp.llama_model_default_params

    def params() -> Any:
        p = default()
        p.use_extra_bufts = step <= FEW
        return p

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", params)
    llama = open_llama(path)
    in_steps(llama.eval, step)
    found = np.array(llama.scores[: len(TOKENS)], np.float32)
    llama.close()
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("step", [1, FEW, 18, 180])
def test_equals_libllama(
    plain: Path, threads: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits to the bit, in single tokens, in the largest batches that the copies are for, and in others."""
    expected = libllama(plain, step, monkeypatch)
    with Sardine(plain, n_ctx=N_CTX, n_threads=threads, repack=True) as m:
        np.testing.assert_array_equal(np.concatenate(in_steps(m.eval, step)), expected)


@pytest.mark.parametrize("mode", ["off", "gain", "sparse"])
@pytest.mark.parametrize("step", [1, FEW, 60, 180])
def test_near_the_mapped_weights(experts: Path, mode: str, step: int) -> None:
    """Every mode, tokens one by one and in batches; the copies are another computation, so not equal."""
    found = []
    for repack in (True, False):
        with Sardine(experts, n_ctx=N_CTX, delta_mode=mode, repack=repack) as m:  # type: ignore[arg-type]
            found.append(np.concatenate(in_steps(m.eval, step)))
    if step <= FEW:
        assert 0 < nmse(*found) <= MAX_NMSE
    else:
        np.testing.assert_array_equal(*found)


def test_what_is_copied(plain: Path, experts: Path, base: Path, workshop: Path) -> None:
    """Bytes of the matrices that have a layout: none of f32, and none by default."""
    with Sardine(plain) as m:
        assert m.model.repacked == (0, 0.0)
        assert "repacked" not in m.describe()
    for path in (plain, experts):
        with Sardine(path, repack=True) as m:
            copies, size = m.model.repacked
            assert 0 < copies <= 7 * N_LAYERS + 1
            weights = sum(t.nbytes for t in m.model.file.tensors if t.name.endswith("weight"))
            assert 0 < size <= 1.5 * weights  # layouts may pad
            assert "repacked)" in m.describe()
    whole = workshop / "repack-f32.gguf"
    write_base(base, whole, "f32", n_threads=2)
    found = []
    for repack in (True, False):
        with Sardine(whole, repack=repack) as m:
            assert m.model.repacked == (0, 0.0)
            found.append(m.eval(TOKENS))
    np.testing.assert_array_equal(*found)


def test_tied_embeddings(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output's matrix is copied as libllama does, and its rows are still read as embeddings."""
    base = tiny_base(
        workshop / "repack-tied",
        std=0.05,
        hidden=256,
        inner=256,
        heads=4,
        head_dim=64,
        layers=1,
        tied=True,
    )
    path = workshop / "repack-tied.gguf"
    write_base(base, path, "q4_k_m", n_threads=2, pure=True)
    for step in (1, 180):
        expected = libllama(path, step, monkeypatch)
        with Sardine(path, n_ctx=N_CTX, repack=True) as m:
            assert m.model.repacked[0] == 8
            np.testing.assert_array_equal(np.concatenate(in_steps(m.eval, step)), expected)


def test_contexts_share_the_copies(plain: Path) -> None:
    """A second context is equal to the first, and outlives it."""
    with Sardine(plain, n_ctx=N_CTX, repack=True) as m:
        other = m.new_context()
        expected = m.eval(TOKENS)
    with other:
        np.testing.assert_array_equal(other.eval(TOKENS), expected)
        assert other.model.repacked[0] > 0


def test_refused_where_memory_is_short(plain: Path, free: None) -> None:
    """With both numbers, before anything is copied."""
    _native.pretend_available_memory(50_000)
    with pytest.raises(InsufficientMemory, match=r"repack needs \d+ bytes more .* but 50000 bytes"):
        Sardine(plain, repack=True)
    _native.pretend_available_memory(0)
    with Sardine(plain, repack=True) as m:
        assert m.model.repacked[0] > 0


def test_progress_and_stop(plain: Path) -> None:
    """Progress rises to 1, and what the callback raises ends the copies."""
    seen: list[float] = []
    with Sardine(plain, repack=True, n_threads=1, progress=seen.append):
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0.0, 1.0)
        assert len([x for x in seen if 0.2 < x < 1]) >= N_LAYERS

    class StopHere(Exception):
        pass

    def stop(fraction: float) -> None:
        if fraction > 0.5:
            raise StopHere

    with pytest.raises(StopHere):
        Sardine(plain, repack=True, n_threads=1, progress=stop)


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 3, "all"])
def test_layers_on_a_gpu_are_not_copied(plain: Path, n_gpu_layers: int | str) -> None:
    """Only what the CPU computes is."""
    _native.emulate_gpu(1 << 30)
    try:
        with Sardine(plain, n_ctx=N_CTX, n_gpu_layers=n_gpu_layers, repack=True) as m:  # type: ignore[arg-type]
            copies, _ = m.model.repacked
            logits = m.eval(TOKENS)
    finally:
        _native.emulate_gpu(0)
    layers = N_LAYERS if n_gpu_layers == 0 else N_LAYERS + 1 - m_layers(n_gpu_layers)
    assert (copies > 0) == (layers > 0)
    assert copies <= 7 * layers + (n_gpu_layers == 0)
    with Sardine(plain, n_ctx=N_CTX) as m:
        assert nmse(logits, m.eval(TOKENS)) <= MAX_NMSE


def m_layers(n: int | str) -> int:
    """n_gpu_layers as a number."""
    return N_LAYERS + 1 if n == "all" else int(n)
