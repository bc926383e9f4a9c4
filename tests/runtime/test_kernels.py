"""Each kernel path against the plain loop, and the plain loop against scipy in float64.

Bound for one element y = sum_p v_p x_p with v_p = sum_j w_j s_j q_jp over n positions and k experts:
forming v_p rounds at most k + 2 times (q d, w s, products, sums), each product once and the sum of n terms
at most n times, so |error| <= (n + k + 4) eps sum_p sum_j |w_j s_j q_jp x_p| to first order; 2 covers the
rest, and the tile path, which sums per expert first, has no more roundings. eps = 2^-24. The shared part is
one more term of v_p; the tile path adds it to each expert's values, where the weights' sum rounds once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sardine_gguf import _native

EPS = 2.0**-24
PATHS = _native.kernel_paths()
TYPES = ("f32", "f16", "q8_0")


@dataclass(frozen=True)
class Problem:
    """A packed delta with routes and activations; dense[e] is Delta_e in float64."""

    row_ptr: NDArray[np.int32]
    col: NDArray[np.uint16]
    val: NDArray[np.uint8]
    kind: str
    scale: NDArray[np.float32]
    shape: tuple[int, int, int]  # rows, columns, columns of a block
    routes: NDArray[np.float32]
    x: NDArray[np.float32]
    experts: list[scipy.sparse.csr_matrix]
    shared: tuple[NDArray[np.uint8], str, float] | None = None  # bytes, type, scale
    common: scipy.sparse.csr_matrix | None = None  # what they mean

    def run(self, path: str, n_threads: int = 1) -> NDArray[np.float32]:
        """y [n_tokens, n_rows] of a path."""
        return _native.sparse_delta(path, **self.arguments(), n_threads=n_threads)

    def arguments(self) -> dict[str, Any]:
        """What a kernel is called with, by the names that the bindings use."""
        rows, cols, block = self.shape
        shared = zip(("shared", "shared_type", "shared_scale"), self.shared or (), strict=False)
        return {
            "row_ptr": self.row_ptr,
            "col": self.col,
            "val": self.val,
            "type": self.kind,
            "scale": self.scale,
            "n_rows": rows,
            "n_cols": cols,
            "block_columns": block,
            "routes": self.routes,
            "x": self.x,
            **dict(shared),
        }

    def exact(self, path: str = "") -> tuple[NDArray[Any], NDArray[Any]]:
        """y in float64 by scipy, and the bound of each element on a path."""
        k = self.routes.shape[1] // 2
        y = np.zeros((len(self.x), self.shape[0]))
        size = np.zeros_like(y)
        x = self.x.astype(np.float64)
        for t, route in enumerate(self.routes.astype(np.float64)):
            for w, e in zip(route[:k], route[k:].astype(int), strict=True):
                y[t] += w * (self.experts[e] @ x[t])
                size[t] += abs(w) * (abs(self.experts[e]) @ abs(x[t]))
            if self.common is not None:
                y[t] += self.common @ x[t]
                size[t] += abs(self.common) @ abs(x[t])
        n = np.diff(self.experts[0].indptr)
        error = 2 * (n + k + 4) * EPS + self.coarse_error(path)
        return y, error * size + 1e-37

    def coarse_error(self, path: str) -> float:
        """Relative to a summand, what a path's coarse tile adds: x is rounded to BF16, the value too on some.

        Its significand has 8 bits, so a rounding errs by 2^-8 at most.
        """
        coarse = len(self.x) >= 5 and self.kind == "q8_0" and self.shared is None
        roundings = {"avx2": 1, "neon": 1, "avx512bf16": 2}.get(path, 0) if coarse else 0
        return (1 + 2.0**-8) ** roundings - 1


def encode(values: NDArray[np.float32], kind: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Values [E, n] as the file's bytes, and what those bytes mean in float64."""
    if kind == "f32":
        return values.view(np.uint8).reshape(-1), values.astype(np.float64)
    if kind == "f16":
        half = values.astype(np.float16)
        return half.view(np.uint8).reshape(-1), half.astype(np.float64)
    n = values.shape[1]
    padded = np.zeros((len(values), -(-n // 32) * 32), np.float32)
    padded[:, :n] = values
    data = _native.quantize(padded, "q8_0", 1)
    blocks = data.reshape(-1).view(np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    exact = blocks["d"].astype(np.float64)[:, None] * blocks["q"]
    return data.reshape(-1), exact.reshape(len(values), -1)[:, :n]


def make_problem(
    mask: NDArray[np.bool_],
    block: int,
    n_experts: int,
    k: int,
    n_tokens: int,
    kind: str,
    seed: int,
    shared_kind: str | None = None,
) -> Problem:
    """A problem whose positions are a mask [rows, columns] with at least one; k may be 0."""
    rng = np.random.default_rng(seed)
    rows, cols = mask.shape
    n_blocks = -(-cols // block)
    parts = [np.argwhere(mask[:, b * block : (b + 1) * block]) for b in range(n_blocks)]
    counts = [np.bincount(p[:, 0], minlength=rows) for p in parts]
    row_ptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    col = np.concatenate([p[:, 1] for p in parts]).astype(np.uint16)
    values = rng.standard_normal((n_experts, len(col))).astype(np.float32)
    val, meant = encode(values, kind)
    scale = (2.0 ** rng.integers(-8, 8, n_experts)).astype(np.float32)
    routes = np.empty((n_tokens, 2 * k), np.float32)
    for t in range(n_tokens):
        w = np.sort(rng.dirichlet(np.ones(k)))[::-1] if k else []
        routes[t] = [*w, *rng.permutation(n_experts)[:k]]
    where_row = np.concatenate([p[:, 0] for p in parts])
    where_col = np.concatenate([p[:, 1] + b * block for b, p in enumerate(parts)])
    experts = [
        scipy.sparse.csr_matrix(
            (meant[e] * np.float64(scale[e]), (where_row, where_col)), shape=mask.shape
        )
        for e in range(n_experts)
    ]
    x = rng.standard_normal((n_tokens, cols)).astype(np.float32)
    shared, common = None, None
    if shared_kind is not None:
        data, meaning = encode(rng.standard_normal((1, len(col))).astype(np.float32), shared_kind)
        factor = float(2.0 ** rng.integers(-8, 8))
        shared = data, shared_kind, factor
        common = scipy.sparse.csr_matrix(
            (meaning[0] * factor, (where_row, where_col)), shape=mask.shape
        )
    shape = (rows, cols, block)
    return Problem(row_ptr, col, val, kind, scale, shape, routes, x, experts, shared, common)


def check(problem: Problem, n_threads: int = 1) -> None:
    """The reference against scipy, every path against scipy, threads against one thread."""
    y, bound = problem.exact()
    assert (abs(problem.run("reference") - y) <= EPS * abs(y) + bound).all()
    for path in PATHS:
        _, bound = problem.exact(path)
        found = problem.run(path, n_threads)
        worst = (abs(found - y) / bound).max()
        assert worst <= 1, f"{path}: {worst:.3g} of the bound"


@st.composite
def problems(draw: st.DrawFn) -> tuple[Problem, int]:
    """Shapes, densities and types at random, empty and full rows among them."""
    rows, cols = draw(st.integers(1, 90)), draw(st.integers(1, 140))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, cols)) < draw(st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.9, 1.0]))
    for r in range(rows):
        mask[r] |= rng.random() < draw(st.just(0.05))
        mask[r] &= rng.random() > 0.1
    mask[rng.integers(rows), rng.integers(cols)] = True
    n_experts = draw(st.integers(1, 9))
    shared_kind = draw(st.sampled_from([None, *TYPES]))
    k = draw(st.integers(0 if shared_kind else 1, n_experts))
    block = draw(st.sampled_from([1, 2, 7, 16, 31, 32, 64, 65, cols, 65536]))
    n_tokens = draw(st.one_of(st.integers(1, 8), st.sampled_from([31, 32, 33, 64, 65, 70])))
    kind = draw(st.sampled_from(TYPES))
    problem = make_problem(mask, block, n_experts, k, n_tokens, kind, seed, shared_kind)
    return problem, draw(st.integers(1, 4))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_random_shapes(problem: tuple[Problem, int]) -> None:
    """Every path within the bound."""
    check(*problem)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n_tokens", [1, 4, 5, 40])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 9000, 65536), (3, 5000, 4999), (200, 1, 1), (70, 64, 64), (2, 4100, 17)],
    ids=str,
)
def test_edge_shapes(kind: str, n_tokens: int, shape: tuple[int, int, int]) -> None:
    """Full matrices: one row, one column, rows longer than a group of 2048 positions, many blocks."""
    rows, cols, block = shape
    check(make_problem(np.ones((rows, cols), bool), block, 3, 2, n_tokens, kind, 7), 3)


@pytest.mark.parametrize("kind", TYPES)
def test_uneven_rows(kind: str) -> None:
    """One long row among empty ones; more threads than rows with positions."""
    mask = np.zeros((300, 5000), bool)
    mask[17] = True
    mask[18, ::7] = True
    mask[299, 4999] = True
    for n_tokens in (1, 3, 40):
        check(make_problem(mask, 65536, 4, 3, n_tokens, kind, 3), 8)


@pytest.mark.parametrize("kind", TYPES)
def test_threads_change_only_roundings(kind: str) -> None:
    """Groups of rows start elsewhere with other threads, and so do the vector loops' tails."""
    mask = np.random.default_rng(1).random((257, 300)) < 0.2
    for n_tokens in (1, 4, 37):
        problem = make_problem(mask, 128, 5, 2, n_tokens, kind, 5)
        for path in PATHS:
            _, bound = problem.exact(path)
            one = problem.run(path, 1)
            for n in (2, 3, 5):
                assert (abs(problem.run(path, n) - one) <= bound).all()


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_no_nan_in_other_tokens(kind: str, value: float) -> None:
    """Activations of one token that are not finite show in it, and do not reach the others of its tile."""
    problem = make_problem(np.ones((8, 40), bool), 65536, 2, 1, 40, kind, 9)
    y, _ = problem.exact()
    problem.x[3, 7] = value
    for path in PATHS:
        found = np.delete(problem.run(path), 3, axis=0)
        with np.errstate(invalid="ignore"):
            bound = np.delete(problem.exact(path)[1], 3, axis=0)
        assert (abs(found - np.delete(y, 3, axis=0)) <= bound).all()
        assert not np.isfinite(problem.run(path)[3]).any()


@pytest.mark.parametrize("n_tokens", [5, 8, 15, 16, 17, 24, 31, 32, 33])
@pytest.mark.parametrize("spread", [0, 100])
def test_worst_roundings(n_tokens: int, spread: int) -> None:
    """Activations halfway between two BF16 and of one sign, as are the values: no error cancels another.

    Their magnitudes are alike, or powers of two apart up to 2^spread; infinity is never reached.
    """
    check(one_sided_problem(n_tokens, spread), 2)


def one_sided_problem(n_tokens: int, spread: int) -> Problem:
    """See test_worst_roundings."""
    mask = np.random.default_rng(4).random((70, 300)) < 0.3
    problem = make_problem(mask, 128, 1, 1, n_tokens, "q8_0", 2)
    rng = np.random.default_rng(n_tokens)
    halfway = 1 + (2 * rng.integers(0, 128, problem.x.shape) + 1) / 256
    problem.x[:] = halfway * 2.0 ** rng.integers(-spread, spread + 1, problem.x.shape)
    problem.val.reshape(-1, 34)[:, 2:] &= 0x7F
    blocks = problem.val.view(np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    values = (blocks["d"].astype(np.float64)[:, None] * blocks["q"]).reshape(-1)
    blocks_of = [np.argwhere(mask[:, b : b + 128]) + np.array([0, b]) for b in (0, 128, 256)]
    rows = np.concatenate(blocks_of)
    problem.experts[0] = scipy.sparse.csr_matrix(
        (values[: len(rows)] * np.float64(problem.scale[0]), rows.T), shape=mask.shape
    )
    return problem


def torch_route(logits: NDArray[np.float32], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights and experts, ties broken by the lower index."""
    clamped = torch.clamp(torch.from_numpy(logits), -50, 50)
    order = torch.sort(clamped, descending=True, stable=True).indices[:k]
    return torch.softmax(clamped[order], 0).numpy(), order.numpy()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=256),
    st.integers(1, 256),
    st.booleans(),
)
def test_route(values: list[float], k: int, rounded: bool) -> None:
    """As top-k, then softmax; with many ties when rounded, beyond the clamp too."""
    logits = np.array(values, np.float32)
    logits = np.round(logits / 8) * 8 if rounded else logits
    k = min(k, len(values))
    out = np.array(_native.route(logits, k))
    weights, ids = torch_route(logits, k)
    np.testing.assert_array_equal(out[k:], ids)
    np.testing.assert_allclose(out[:k], weights, rtol=0, atol=1e-6)
    assert abs(out[:k].sum() - 1) < 1e-5
    top = torch.topk(torch.clamp(torch.from_numpy(logits), -50, 50), k).values
    np.testing.assert_array_equal(np.clip(logits, -50, 50)[out[k:].astype(int)], top.numpy())


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1e30, 60.0, 50.0, 0.0], [0, 1, 2]),
        ([-1e30, -60.0, -50.0, -51.0], [0, 1, 2]),
        ([0.0, 0.0, 0.0, 0.0], [0, 1, 2]),
        ([float("inf"), 1.0, float("-inf"), 2.0], [0, 3, 1]),
        ([float("nan"), 1.0, -49.0, -60.0], [1, 2, 0]),
    ],
)
def test_route_edges(logits: list[float], expected: list[int]) -> None:
    """Ties, the clamp, infinities; NaN counts as the lowest."""
    out = _native.route(np.array(logits, np.float32), 3)
    assert [int(e) for e in out[3:]] == expected
    assert np.isfinite(out).all()


def test_bad_arguments() -> None:
    """The binding that the tests use checks its arguments, too."""
    p = make_problem(np.ones((2, 3), bool), 8, 2, 1, 1, "f32", 0)
    with pytest.raises(ValueError, match="does not run here"):
        p.run("abacus")
    p.routes[0, 1] = 2
    with pytest.raises(ValueError, match="expert"):
        p.run("reference")
    with pytest.raises(ValueError, match="k <= n_experts"):
        _native.route(np.zeros(2, np.float32), 3)
