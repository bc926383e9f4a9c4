"""Keys and values in q8_0: the kernels against float64, batches against single tokens, the cost in KL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TinyModel, kl_divergence, make_model, nmse, random_tokens
from numpy.typing import NDArray
from sardine_gguf import Sardine, _native
from test_attention import EPS, exact

# The same sums in other orders, on the same stored keys and values: the bound of the consistency tests.
MAX_NMSE = 1e-9
# Mean KL from f16's next token distributions, in nats, stated in docs/architecture.md; 5e-5 was the largest
# of many seeds.
MAX_KL = 2e-4


def blocks(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows [n, heads, dim] as q8_0 [n, heads, bytes], by ggml's quantizer."""
    n, heads, dim = x.shape
    rows = _native.quantize(np.ascontiguousarray(x.reshape(-1, dim)), "q8_0")
    return np.ascontiguousarray(np.asarray(rows).reshape(n, heads, dim // 32 * 34))


def widened(x: NDArray[np.uint8], dim: int) -> NDArray[np.float64]:
    """q8_0 rows as float64, from the block's definition: int8 times an f16 scale."""
    block = x.reshape(*x.shape[:2], dim // 32, 34)
    scale = np.ascontiguousarray(block[..., :2]).view(np.float16).astype(np.float64)
    return (block[..., 2:].view(np.int8) * scale).reshape(*x.shape[:2], dim)


@pytest.mark.parametrize("path", _native.kernel_paths())
@settings(max_examples=60, deadline=None)
@given(
    dim=st.sampled_from([32, 64, 96, 128, 160]),
    heads_kv=st.integers(1, 3),
    shared=st.integers(1, 9),
    n_kv=st.integers(1, 300),
    n_tokens=st.integers(1, 5),
    spread=st.sampled_from([1e-6, 0.01, 1.0, 20.0]),
    n_threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_exact_to_rounding(
    path: str,
    dim: int,
    heads_kv: int,
    shared: int,
    n_kv: int,
    n_tokens: int,
    spread: float,
    n_threads: int,
    seed: int,
) -> None:
    """On what the blocks mean. One more rounding, scale times integer, than the other types."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n_tokens, heads_kv * shared, dim)).astype(np.float32)
    k = blocks((spread * rng.standard_normal((n_kv, heads_kv, dim))).astype(np.float32))
    v = blocks(rng.standard_normal((n_kv, heads_kv, dim)).astype(np.float32))
    positions = rng.integers(0, n_kv, n_tokens).astype(np.int32)
    scale = dim**-0.5
    found = _native.attention(path, q, k, v, positions, scale=scale, n_threads=n_threads)
    wide_k, wide_v = widened(k, dim), widened(v, dim)
    terms = scale * np.abs(q).max() * np.abs(wide_k).max() * dim
    bound = EPS * (2 * (dim + 1) * terms + 2 * n_kv + 17) * np.abs(wide_v).max()
    expected = exact(q, wide_k, wide_v, positions, scale)
    np.testing.assert_allclose(found, expected, rtol=0, atol=float(bound))


@pytest.mark.parametrize("path", _native.kernel_paths())
def test_every_integer_and_scale_is_read_exactly(path: str) -> None:
    """One visible row: the output is the row. All int8, and scales of every exponent."""
    bits = np.arange(0, 0x7C00, 61, dtype=np.uint16)
    rows = np.zeros((1, 1, 8 * len(bits), 34), np.uint8)
    rows[0, 0, :, :2] = np.repeat(bits, 8)[:, None].view(np.uint8).reshape(-1, 2)
    rows[0, 0, :, 2:] = np.tile(np.arange(256, dtype=np.uint8).reshape(8, 32), (len(bits), 1))
    v = rows.reshape(1, 1, -1)
    dim = 32 * 8 * len(bits)
    q = np.zeros((1, 1, dim), np.float32)
    out = _native.attention(path, q, np.zeros_like(v), v, np.zeros(1, np.int32), scale=1.0)
    np.testing.assert_array_equal(out, widened(v, dim).astype(np.float32))


def test_shapes_are_checked() -> None:
    """Bytes that are no whole blocks are refused."""
    q = np.zeros((1, 1, 48), np.float32)
    k = np.zeros((2, 1, 51), np.uint8)
    with pytest.raises(ValueError, match="shapes"):
        _native.attention("portable", q, k, k, np.zeros(1, np.int32), scale=1.0)


def test_heads_of_other_widths_are_refused(tiny: TinyModel) -> None:
    """Before anything is allocated, with the model's head dimension."""
    with pytest.raises(ValueError, match=r"q8_0.*multiple of 32.*16"):
        tiny.open(kv_type="q8_0")
    with tiny.open() as m, pytest.raises(ValueError, match=r"q8_0.*multiple of 32"):
        m.new_context(kv_type="q8_0")


@pytest.mark.parametrize("mode", ["sparse", "gain", "off"])
def test_any_cut_gives_the_same(wide: TinyModel, mode: str) -> None:
    """Single tokens and small batches (our op) equal large ones (widened rows, ggml's flash attention)."""
    tokens = random_tokens(230, 3)
    with wide.open(kv_type="q8_0", delta_mode=mode) as m:
        whole = m.eval(tokens)
        # The last bit of a key can move its rounding to 8 bits, by half a step of 1/127 of the largest of 32.
        # That is q8_0's own error, which a whole cache of them makes: (1 / 254)^2 / 3 of the square.
        bound = 254.0**-2 / 3
        for n_batch in (1, 3, 63, 64, 65, 129):
            assert nmse(m.new_context(n_batch=n_batch).eval(tokens), whole) <= bound
        m.session.truncate(150)
        tail = [m.eval([t])[0] for t in tokens[150:]]
        assert nmse(np.array(tail), whole[150:]) <= bound
    with wide.open(kv_type="q8_0", delta_mode=mode, n_threads=3) as m:
        assert nmse(m.eval(tokens), whole) <= MAX_NMSE


def test_it_takes_about_half_of_f16(wide: TinyModel) -> None:
    """34 bytes for 32 values instead of 64."""
    from sardine_gguf import InsufficientMemory

    sizes = {}
    _native.pretend_available_memory(1)
    try:
        for kind in ("f16", "q8_0"):
            with pytest.raises(InsufficientMemory) as caught:
                wide.open(kv_type=kind)
            sizes[kind] = int(str(caught.value).split("(")[1].split()[0])
    finally:
        _native.pretend_available_memory(0)
    assert sizes["q8_0"] * 64 == sizes["f16"] * 34


def mean_kl(path: Path, tokens: list[int], **options: object) -> float:
    """KL of q8_0's distributions from f16's over a text."""
    with Sardine(path, n_threads=1, **options) as m:  # type: ignore[arg-type]
        expected = m.eval(tokens)
        found = m.new_context(kv_type="q8_0").eval(tokens)
    assert not np.array_equal(found, expected)
    return float(kl_divergence(expected, found).mean())


@pytest.mark.parametrize("mode", ["sparse", "gain", "off"])
def test_kl_from_f16_on_a_random_model(wide: TinyModel, mode: str) -> None:
    """Past three times YaRN's original context."""
    assert mean_kl(wide.gguf, random_tokens(240, 7), delta_mode=mode) <= MAX_KL


def test_kl_from_f16_in_eights_of_heads(workshop: Path) -> None:
    """The shape of the 14B's attention, eight heads of 128 for each cached one, on small matrices."""
    base = {"heads": 8, "heads_kv": 1, "head_dim": 128}
    model = make_model(workshop / "heads128", base=base, srde={"n_experts": 3})
    assert mean_kl(model.gguf, random_tokens(240, 8)) <= MAX_KL
