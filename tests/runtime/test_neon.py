"""The NEON kernels, cross-compiled and emulated, within the bounds that the other paths are tested with."""

from __future__ import annotations

from pathlib import Path

import kernel_runner
import numpy as np
import pytest
from kernel_runner import attention_record, delta_record
from numpy.typing import NDArray
from test_attention import EPS, exact
from test_kernels import TYPES, Problem, make_problem, one_sided_problem
from test_kv_q8 import blocks, widened

pytestmark = pytest.mark.skipif(
    not kernel_runner.available(),
    reason=f"needs {kernel_runner.COMPILER} and {kernel_runner.EMULATOR}",
)
PATHS = ("portable", "neon")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of AArch64."""
    return kernel_runner.build(tmp_path_factory.mktemp("neon"))


def check(program: Path, problems: list[tuple[Problem, int]]) -> None:
    """NEON's kernels, and the portable ones as that compiler makes them, against scipy."""
    records = [delta_record(p.arguments(), n) for p, n in problems]
    for path in PATHS:
        found = kernel_runner.run(program, path, records)
        for (problem, n_threads), y in zip(problems, found, strict=True):
            expected, bound = problem.exact(path)
            worst = (abs(y.reshape(expected.shape) - expected) / bound).max()
            where = f"{path}: {problem.shape}, {problem.kind}, {len(problem.x)} tokens, {n_threads}"
            assert worst <= 1, f"{where} threads: {worst:.3g} of the bound"


def random_problem(seed: int) -> tuple[Problem, int]:
    """Any shape, density, block, type, number of experts, tokens and threads; empty and full rows too."""
    rng = np.random.default_rng(seed)
    rows, cols = rng.integers(1, 90), rng.integers(1, 140)
    mask = rng.random((rows, cols)) < rng.choice([0.0, 0.01, 0.05, 0.3, 0.9, 1.0])
    mask[rng.random(rows) < 0.05] = True
    mask[rng.random(rows) < 0.1] = False
    mask[rng.integers(rows), rng.integers(cols)] = True
    n_experts = int(rng.integers(1, 9))
    shared = rng.choice([None, None, *TYPES])
    k = int(rng.integers(0 if shared else 1, n_experts + 1))
    block = int(rng.choice([1, 2, 7, 16, 31, 32, 64, 65, cols, 65536]))
    n_tokens = int(rng.choice([1, 2, 4, 5, 8, 9, 16, 17, 24, 31, 32, 33, 65]))
    kind = str(rng.choice(TYPES))
    problem = make_problem(mask, block, n_experts, k, n_tokens, kind, seed, shared)
    return problem, int(rng.integers(1, 5))


def test_random_blocks(program: Path) -> None:
    check(program, [random_problem(seed) for seed in range(150)])


def test_edge_shapes(program: Path) -> None:
    """Full matrices of one row, one column, long rows, many blocks; one full row among empty ones."""
    shapes = [(1, 1, 1), (1, 9000, 65536), (3, 5000, 4999), (200, 1, 1), (70, 64, 64), (2, 900, 17)]
    masks = [(np.ones(shape[:2], bool), shape[2]) for shape in shapes]
    uneven = np.zeros((300, 5000), bool)
    uneven[17] = uneven[299, 4999] = True
    masks.append((uneven, 65536))
    problems = [
        (make_problem(mask, block, 3, 2, n_tokens, kind, 7), 3)
        for mask, block in masks
        for n_tokens in (1, 40)
        for kind in TYPES
    ]
    check(program, problems)


def test_worst_roundings(program: Path) -> None:
    """As in test_kernels: halfway between two BF16, errors of one sign."""
    problems = [
        one_sided_problem(n, s) for n in (5, 8, 9, 16, 17, 24, 25, 32, 33) for s in (0, 100)
    ]
    check(program, [(p, 2) for p in problems])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_no_nan_in_other_tokens(program: Path, value: float) -> None:
    for kind in ("f32", "q8_0"):
        problem = make_problem(np.ones((8, 40), bool), 65536, 2, 1, 40, kind, 9)
        y, bound = problem.exact("neon")
        problem.x[3, 7] = value
        (found,) = kernel_runner.run(program, "neon", [delta_record(problem.arguments(), 1)])
        error = abs(found.reshape(y.shape) - y)
        assert (np.delete(error, 3, axis=0) <= np.delete(bound, 3, axis=0)).all()
        assert not np.isfinite(error[3]).any()


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_attention(program: Path, kind: str) -> None:
    """Any width of a head (of q8_0 whole blocks), numbers of heads and positions."""
    cases, records = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        dim = 32 * int(rng.integers(1, 5)) if kind == "q8_0" else int(rng.integers(1, 140))
        heads, shared, n_kv, n_tokens = (int(rng.integers(1, n)) for n in (4, 10, 200, 6))
        q = rng.standard_normal((n_tokens, heads * shared, dim)).astype(np.float32)
        k = (rng.choice([0.01, 1, 20]) * rng.standard_normal((n_kv, heads, dim))).astype(np.float32)
        v = rng.standard_normal((n_kv, heads, dim)).astype(np.float32)
        positions = rng.integers(0, n_kv, n_tokens).astype(np.int32)
        if kind == "q8_0":
            stored = blocks(k), blocks(v)
            meant = widened(stored[0], dim), widened(stored[1], dim)
        else:
            kept: tuple[NDArray[np.floating], ...] = tuple(
                a.astype(np.float16 if kind == "f16" else np.float32) for a in (k, v)
            )
            stored, meant = kept, tuple(a.astype(np.float64) for a in kept)
        cases.append((q, *meant, positions, dim**-0.5))
        records.append(attention_record(q, *stored, positions, dim**-0.5))
    for path in PATHS:
        for (q, k, v, positions, scale), out in zip(
            cases, kernel_runner.run(program, path, records), strict=True
        ):
            # test_kv_q8.test_attention_is_exact_to_rounding derives it.
            dim = q.shape[2]
            terms = scale * np.abs(q).max() * np.abs(k).max() * dim
            bound = EPS * (2 * (dim + 1) * terms + 2 * len(k) + 17) * np.abs(v).max()
            expected = exact(q, k, v, positions, scale)
            np.testing.assert_allclose(
                out.reshape(q.shape), expected, rtol=0, atol=float(bound), err_msg=path
            )
