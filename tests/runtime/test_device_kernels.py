"""The GPU's kernels, compiled for the CPU and run on an emulated grid of threads, against scipy in float64.

Both sum products in another order than the CPU's, which the bound of test_kernels.py covers; the base that a
row kernel adds to costs one more rounding, and the tile kernel, which weighs an expert's sum and not its
values, rounds no more often than that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sardine_gguf import _native
from test_kernels import EPS, TYPES, Problem, make_problem, problems, torch_route

ORDERS = ("forward", "backward", "random")


def run(problem: Problem, kernel: str, **device: Any) -> list[NDArray[np.float32]]:
    """What the emulated kernel gives."""
    return _native.device_delta(kernel, **problem.arguments(), **device)


def check_rows(problem: Problem, **device: Any) -> None:
    """Alone upon a base, and twice in one launch."""
    y, bound = problem.exact()
    found, base, first, second = run(problem, "rows", **device)
    assert (abs(found - (base + y)) <= bound + EPS * (abs(base) + abs(base + y))).all()
    assert (abs(first - y) <= bound + EPS * abs(y)).all()
    np.testing.assert_allclose(first, second, rtol=0, atol=float(2 * bound.max()))


def check_tiles(problem: Problem, **device: Any) -> None:
    """Within what the order of the sums costs."""
    y, bound = problem.exact()
    (found,) = run(problem, "tiles", **device)
    assert (abs(found - y) <= bound).all()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    problems(), st.sampled_from(ORDERS), st.integers(1, 5), st.sampled_from([12288, 49152, 101376])
)
def test_random_shapes(
    problem: tuple[Problem, int], order: str, n_multiprocessors: int, shared_block: int
) -> None:
    """Both kernels on the matrices of the CPU's tests, under every order of the threads."""
    device = {
        "order": order,
        "seed": problem[1],
        "n_multiprocessors": n_multiprocessors,
        "shared_block": shared_block,
    }
    check_rows(problem[0], **device)
    check_tiles(problem[0], **device)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 9000, 65536), (3, 5000, 4999), (600, 1, 1), (70, 64, 64), (2, 4100, 17)],
    ids=str,
)
def test_edge_shapes(kind: str, shape: tuple[int, int, int]) -> None:
    """Full matrices: one row, one column, rows of many chunks, x too wide for shared memory, many blocks."""
    rows, cols, block = shape
    problem = make_problem(np.ones((rows, cols), bool), block, 3, 2, 3, kind, 7)
    check_rows(problem, order="random", n_multiprocessors=3)
    check_tiles(problem, order="random")


@pytest.mark.parametrize("kind", TYPES)
def test_uneven_rows(kind: str) -> None:
    """One long row among empty ones; more than 32 empty rows in a row; more warps than full rows."""
    mask = np.zeros((700, 2000), bool)
    mask[17] = True
    mask[18, ::7] = True
    mask[300, 1999] = True
    mask[699, ::3] = True
    problem = make_problem(mask, 65536, 4, 3, 2, kind, 3)
    for order in ORDERS:
        check_rows(problem, order=order, n_multiprocessors=4)
        check_tiles(problem, order=order)


@pytest.mark.parametrize("density", [0.002, 0.01, 0.04])
def test_density_of_models(density: float) -> None:
    """The densities that models have, more than a tile of tokens, and one expert that nobody chose."""
    mask = np.random.default_rng(4).random((520, 1100)) < density
    problem = make_problem(mask, 65536, 8, 2, 150, "q8_0", 5)
    problem.routes[:, 2:] = np.where(problem.routes[:, 2:] == 7, [[7, 3]], problem.routes[:, 2:])
    problem.routes[problem.routes[:, 2] == problem.routes[:, 3], 3] = 6
    check_tiles(problem)
    few = replace(problem, x=problem.x[:2], routes=problem.routes[:2])
    check_rows(few, n_multiprocessors=2)


def test_same_bits_under_every_order() -> None:
    """Sums have a fixed order: how threads are scheduled changes nothing."""
    mask = np.random.default_rng(1).random((57, 300)) < 0.2
    problem = make_problem(mask, 128, 3, 2, 7, "f16", 5)
    for kernel in ("rows", "tiles"):
        first = run(problem, kernel, order="forward")
        for seed in range(2):
            again = run(problem, kernel, order="random", seed=seed)
            for a, b in zip(first, again, strict=True):
                np.testing.assert_array_equal(a, b)


def test_large_and_small_activations() -> None:
    """Tokens of very different size in one tile, each as exact as alone."""
    problem = make_problem(
        np.random.default_rng(2).random((40, 600)) < 0.3, 65536, 3, 2, 70, "f32", 8
    )
    problem.x[:] *= (10.0 ** np.random.default_rng(3).uniform(-30, 30, (70, 1))).astype(np.float32)
    problem.x[5] = 0
    check_tiles(problem)


def test_no_nan_from_other_tokens() -> None:
    """Infinite activations of one token do not reach the others of its tile."""
    problem = make_problem(np.ones((8, 40), bool), 65536, 2, 1, 70, "f32", 9)
    problem.x[3] = np.inf
    y, bound = problem.exact()
    (found,) = run(problem, "tiles")
    assert np.isfinite(np.delete(found, 3, axis=0)).all()
    expected, bound = np.delete(y, 3, 0), np.delete(bound, 3, 0)
    assert (abs(np.delete(found, 3, 0) - expected) <= bound).all()


def route(
    logits: NDArray[np.float32], k: int, **options: Any
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Routes of tokens whose logits are exactly these: x is one, the router's only column holds them."""
    mean = np.linspace(-1, 1, len(logits)).astype(np.float32)
    return _native.device_route(
        logits[:, None], np.ones((1, 1), np.float32), k, mean=mean, **options
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=256),
    st.integers(1, 256),
    st.booleans(),
    st.sampled_from(ORDERS),
)
def test_route(values: list[float], k: int, rounded: bool, order: str) -> None:
    """As the CPU's, with many ties when rounded, beyond the clamp too; the gain is 1 + the weighted means."""
    logits = np.array(values, np.float32)
    logits = np.round(logits / 8) * 8 if rounded else logits
    k = min(k, len(values))
    routes, gain, raw = route(logits, k, order=order)
    weights, ids = torch_route(logits, k)
    np.testing.assert_array_equal(routes[0, k:], ids)
    np.testing.assert_allclose(routes[0, :k], weights, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(raw[0], logits)
    mean = np.linspace(-1, 1, len(values)).astype(np.float32)
    np.testing.assert_allclose(gain[0], 1 + weights @ mean[ids], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_experts", [1, 3, 8, 31, 32, 33, 200])
def test_router_product(n_experts: int) -> None:
    """Logits are router @ x, however experts and warps are paired up."""
    rng = np.random.default_rng(n_experts)
    router = rng.standard_normal((n_experts, 300)).astype(np.float32)
    x = (rng.standard_normal((3, 300)) / 10).astype(np.float32)  # no logit reaches the clamp
    mean = np.zeros(n_experts, np.float32)
    routes, _, logits = _native.device_route(router, x, 1, mean=mean, order="random")
    exact = x.astype(np.float64) @ router.T.astype(np.float64)
    bound = 300 * EPS * (abs(x).astype(np.float64) @ abs(router).T.astype(np.float64))
    assert (abs(logits - exact) <= bound).all()
    np.testing.assert_array_equal(routes[:, 1], logits.argmax(axis=1))
    np.testing.assert_array_equal(routes[:, 0], 1)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1e30, 60.0, 50.0, 0.0], [0, 1, 2]),
        ([-1e30, -60.0, -50.0, -51.0], [0, 1, 2]),
        ([float("inf"), 1.0, float("-inf"), 2.0], [0, 3, 1]),
        ([float("nan"), 1.0, -49.0, -60.0], [1, 2, 0]),
    ],
)
def test_route_edges(logits: list[float], expected: list[int]) -> None:
    """Ties, the clamp, infinities; NaN counts as the lowest."""
    routes, _, _ = route(np.array(logits, np.float32), 3)
    assert [int(e) for e in routes[0, 3:]] == expected


def test_route_steered() -> None:
    """A bias is added to clamped logits and may exclude; forced routes are everyone's."""
    logits = np.array([80, 60, 0, 1], np.float32)
    bias = np.array([-np.inf, -10, 41, 0], np.float32)
    routes, _, raw = route(logits, 2, bias=bias)
    np.testing.assert_array_equal(routes[0, 2:], [2, 1])  # 41, then 50 - 10
    np.testing.assert_allclose(routes[0, :2], np.exp([0, -1]) / np.exp([0, -1]).sum(), atol=1e-6)
    np.testing.assert_array_equal(raw[0], logits)
    forced = np.array([0.75, 0.25, 3, 0], np.float32)
    routes, gain, _ = route(logits, 2, forced=forced)
    np.testing.assert_array_equal(routes[0], forced)
    np.testing.assert_allclose(gain[0], 1 + 0.75 - 0.25, atol=1e-6)


def test_emulation_notices() -> None:
    """A barrier that a thread does not reach, and a write past the shared memory, are errors."""
    _native.emulated_barrier(False, False)
    with pytest.raises(Exception, match="barrier that the others do not reach"):
        _native.emulated_barrier(True, False)
    with pytest.raises(Exception, match="past its 64 bytes"):
        _native.emulated_barrier(False, True)


# Multiprocessors, threads and shared memory of each: a block's and a multiprocessor's bytes.
DEVICES = {
    "RTX 2080 (sm_75)": (46, 1024, 65536, 65536),
    "A100 (sm_80)": (108, 2048, 166912, 167936),
    "RTX 3060 (sm_86)": (28, 1536, 101376, 102400),
    "RTX 4090 (sm_89)": (128, 1536, 101376, 102400),
    "H100 (sm_90)": (132, 2048, 232448, 233472),
    "RTX 5090 (sm_120)": (170, 1536, 101376, 102400),
}


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("width", [64, 5120, 14336, 16384, 65536])
def test_launch_shape(name: str, width: int) -> None:
    """Fits the device, at least half of what it can hold, x in shared memory where there is room."""
    n, threads, block, whole = DEVICES[name]
    blocks, warps, staged, shared = _native.rows_shape(n, threads, block, whole, width, 10**7)
    assert shared <= block
    assert blocks % n == 0
    per = blocks // n
    assert per * (shared + 1024) <= whole + 1024
    assert 16 <= per * warps <= threads // 32
    assert staged == (4 * width + 16 * 1168 <= block)
    few, warps, _, _ = _native.rows_shape(n, threads, block, whole, width, 1000)
    assert (few - 1) * warps < 4
