"""The attention kernels of each instruction set against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sardine_gguf import _native

EPS = 2.0**-24  # rounding of f32


def exact(
    q: NDArray[np.float32],
    k: NDArray[np.floating],
    v: NDArray[np.floating],
    positions: NDArray[np.int32],
    scale: float,
) -> NDArray[np.float64]:
    """Softmax attention [n_tokens, n_heads, dim], one token and head at a time."""
    shared = q.shape[1] // k.shape[1]
    out = np.empty(q.shape)
    for t, p in enumerate(positions):
        for h in range(q.shape[1]):
            keys = k[: p + 1, h // shared].astype(np.float64)
            s = scale * keys @ q[t, h].astype(np.float64)
            w = np.exp(s - s.max())
            out[t, h] = (w / w.sum()) @ v[: p + 1, h // shared].astype(np.float64)
    return out


@pytest.mark.parametrize("path", _native.kernel_paths())
@settings(max_examples=60, deadline=None)
@given(
    dim=st.integers(1, 140),
    heads_kv=st.integers(1, 3),
    shared=st.integers(1, 9),
    n_kv=st.integers(1, 300),
    n_tokens=st.integers(1, 5),
    half=st.booleans(),
    spread=st.sampled_from([0.01, 1.0, 20.0]),
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
    half: bool,
    spread: float,
    n_threads: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    q = rng.standard_normal((n_tokens, heads_kv * shared, dim)).astype(np.float32)
    k = (spread * rng.standard_normal((n_kv, heads_kv, dim))).astype(kind)
    v = rng.standard_normal((n_kv, heads_kv, dim)).astype(kind)
    positions = rng.integers(0, n_kv, n_tokens).astype(np.int32)
    scale = dim**-0.5
    found = _native.attention(path, q, k, v, positions, scale=scale, n_threads=n_threads)
    # A score's error, dim roundings of its terms, is the relative error of a weight; sums of weights
    # and of weighted values add one rounding a position, exp two units in the last place and the
    # rounding of its argument.
    terms = scale * np.abs(q).max() * np.abs(k.astype(np.float64)).max() * dim
    bound = EPS * (2 * dim * terms + 2 * n_kv + 16) * np.abs(v.astype(np.float64)).max()
    np.testing.assert_allclose(found, exact(q, k, v, positions, scale), rtol=0, atol=float(bound))


@pytest.mark.parametrize("path", _native.kernel_paths())
def test_large_scores_do_not_overflow_and_one_row_wins(path: str) -> None:
    q = np.full((1, 2, 16), 100.0, np.float32)
    k = np.zeros((130, 1, 16), np.float32)
    k[70] = 100.0
    v = np.arange(130, dtype=np.float32)[:, None, None] * np.ones((1, 1, 16), np.float32)
    out = _native.attention(path, q, k, v, np.array([129], np.int32), scale=1.0)
    np.testing.assert_array_equal(out, np.full((1, 2, 16), 70.0))


@pytest.mark.parametrize("path", _native.kernel_paths())
def test_f16_values_of_every_kind_are_read_exactly(path: str) -> None:
    """One visible row: the output is the row. All 65,536 f16 but NaN and infinity."""
    bits = np.arange(65536, dtype=np.uint16)
    values = bits[(bits & 0x7C00) != 0x7C00].view(np.float16).reshape(1, 1, -1)
    q = np.zeros(values.shape, np.float32)
    k = np.zeros_like(values)
    out = _native.attention(path, q, k, values, np.zeros(1, np.int32), scale=1.0)
    np.testing.assert_array_equal(out, values.astype(np.float32))


@pytest.mark.parametrize("path", _native.kernel_paths())
def test_nan_stays_nan(path: str) -> None:
    q = np.ones((1, 1, 8), np.float32)
    k = np.ones((3, 1, 8), np.float32)
    v = np.ones((3, 1, 8), np.float32)
    q[0, 0, 3] = np.nan
    out = _native.attention(path, q, k, v, np.array([2], np.int32), scale=1.0)
    assert np.isnan(out).all()
