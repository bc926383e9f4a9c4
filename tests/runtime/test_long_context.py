"""Far past YaRN's original context, in one batch and in odd chunks, against PyTorch; q8_0 within a KL."""

from __future__ import annotations

import numpy as np
import pytest
from models import TinyModel, kl_divergence, nmse, random_tokens
from numpy.typing import NDArray
from reference import Reference
from test_kv_q8 import MAX_KL
from test_parity import MAX_NMSE

N_TOKENS = 250  # 3.9 times YaRN's original context of 64
TOKENS = random_tokens(N_TOKENS, seed=17)
MODES = ("sparse", "gain", "off")
# Calls of these sizes, one after the other; each is cut into batches of the second number.
CHUNKS = {
    "one_batch": ([250], 512),
    "batches_of_37": ([250], 37),
    "odd": ([1, 5, 33, 1, 64, 2, 67, 31, 1, 45], 512),
    "odd_in_batches": ([97, 1, 130, 22], 65),
    "single_tokens_at_the_end": ([200, *[1] * 50], 512),
    "single_tokens": ([1] * 250, 512),
}


@pytest.fixture(scope="module")
def expected(wide: TinyModel) -> dict[str, NDArray[np.float32]]:
    """The reference's logits [n_tokens, n_vocab] in each mode."""
    return {
        mode: Reference(wide.base, wide.srde, wide.top_k, mode).logits(TOKENS).numpy()
        for mode in MODES
    }


def logits(wide: TinyModel, chunks: str, **options: object) -> NDArray[np.float32]:
    """Ours, cut as CHUNKS says."""
    sizes, n_batch = CHUNKS[chunks]
    assert sum(sizes) == N_TOKENS
    ends = np.cumsum(sizes)
    with wide.open(n_batch=n_batch, **options) as m:
        return np.concatenate([m.eval(TOKENS[e - n : e]) for n, e in zip(sizes, ends, strict=True)])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_pytorch(
    wide: TinyModel, expected: dict[str, NDArray[np.float32]], mode: str, chunks: str
) -> None:
    """In f32 to rounding."""
    found = logits(wide, chunks, delta_mode=mode)
    assert nmse(found, expected[mode]) <= MAX_NMSE
    np.testing.assert_array_equal(found.argmax(1), expected[mode].argmax(1))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_cached_types_within_a_kl(
    wide: TinyModel,
    expected: dict[str, NDArray[np.float32]],
    mode: str,
    chunks: str,
    kv_type: str,
) -> None:
    """The stated KL for q8_0, a fiftieth of it for f16; at the end alone no more than twice that.

    Most of f16's comes from mode off, where ggml sums the values of small batches in f16.
    """
    found = logits(wide, chunks, delta_mode=mode, kv_type=kv_type)
    kl = kl_divergence(expected[mode], found)
    bound = MAX_KL if kv_type == "q8_0" else MAX_KL / 50
    assert kl.mean() <= bound
    assert kl[-64:].mean() <= 2 * bound


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_bound_notices_a_wrong_position(
    wide: TinyModel, expected: dict[str, NDArray[np.float32]], kv_type: str
) -> None:
    """One token more at the start, so that every position is off by one, exceeds it."""
    with wide.open(kv_type=kv_type) as m:
        m.eval([9])
        found = m.eval(TOKENS)
    assert kl_divergence(expected["sparse"], found)[1:].mean() > 2 * MAX_KL
