"""On a GPU: kernels within the bounds of their emulation, models as on the CPU. Without one the models run on
the emulated GPU, rounded as ggml-cuda would, so that bounds are known to hold where rounding is concerned.

ggml-cuda rounds factors to TF32 or f16 where the CPU does not, and activations of K-quants in other blocks.
Random models amplify that: to 1e-4 in floating point, and by more where an expert of a token becomes another.
Of quantized ones the base alone is the measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import TinyModel, make_model, nmse, random_tokens, text_of
from sardine_gguf import DeviceError, Sardine, _native
from test_device_kernels import check_rows, check_tiles
from test_kernels import TYPES, make_problem, torch_route

_FOUND = _native.find_gpus()
_THERE = _FOUND["devices"] and _FOUND["has_kernels"]
on_a_gpu = pytest.mark.skipif(not _THERE, reason="no GPU, or a build without SARDINE_CUDA=ON")

MAX_NMSE = 1e-4
MODES = ("sparse", "gain", "off")
TOKENS = random_tokens(200, seed=3)


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    """Without one the CPU plays it, and rounds as ggml-cuda would."""
    if not _THERE:
        _native.emulate_gpu(1 << 34, rounds=True)
    yield
    _native.emulate_gpu(0)


@on_a_gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shared", [None, *TYPES])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_kernels(kind: str, shared: str | None, k: int) -> None:
    """Random matrices in one column block and in several, few tokens and many."""
    rng = np.random.default_rng(k)
    for rows, cols, block, density, n in (
        (700, 1300, 65536, 0.01, 1),
        (300, 900, 400, 0.05, 3),
        (90, 140, 31, 0.5, 70),
        (520, 5120, 65536, 0.01, 150),
        (3, 20000, 65536, 0.9, 2),
    ):
        mask = rng.random((rows, cols)) < density
        mask[rows // 2] = False
        problem = make_problem(mask, block, 8, k, n, kind, k, shared)
        check_rows(problem, gpu=True)
        check_tiles(problem, gpu=True)


@on_a_gpu
@pytest.mark.parametrize("n_experts", [1, 8, 33, 256])
def test_kernels_route(n_experts: int) -> None:
    """Top-k and softmax as the CPU's."""
    rng = np.random.default_rng(n_experts)
    logits = (rng.standard_normal(n_experts) * 30).round().astype(np.float32)
    k = min(n_experts, 5)
    routes, gain, _ = _native.device_route(
        logits[:, None],
        np.ones((1, 1), np.float32),
        k,
        mean=np.ones(n_experts, np.float32),
        gpu=True,
    )
    weights, ids = torch_route(logits, k)
    np.testing.assert_array_equal(routes[0, k:], ids)
    np.testing.assert_allclose(routes[0, :k], weights, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gain[0], 2, rtol=0, atol=1e-5)


@on_a_gpu
def test_kernels_that_fail() -> None:
    """A launch that CUDA refuses is an exception, and the next one works."""
    with pytest.raises(DeviceError, match="CUDA"):
        _native.failing_launch()
    check_rows(make_problem(np.ones((3, 5), bool), 65536, 2, 1, 1, "f32", 1), gpu=True)


def differences(model: TinyModel, *, n_gpu_layers: Any, **options: Any) -> tuple[float, float]:
    """NMSE of the logits, and which part of the experts is the same (1 in mode off)."""
    found = []
    for n in (0, n_gpu_layers):
        with Sardine(model.gguf, n_gpu_layers=n, **options) as m:
            logits = m.eval(TOKENS)
            found.append((logits, m.routing()[0] if m.delta_mode != "off" else np.zeros(1)))
    (expected, experts), (logits, others) = found
    return nmse(logits, expected), float((experts == others).mean())


@pytest.fixture(scope="module", params=[32, 64])
def heads(request: pytest.FixtureRequest, workshop: Path) -> TinyModel:
    """Heads that ggml-cuda has no flash attention for, and those that it has."""
    return make_model(
        workshop / f"gpu-heads{request.param}",
        base={"head_dim": request.param},
        srde={"n_experts": 4, "density": 0.05},
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_gpu_layers", [1, 2, "all"])
@pytest.mark.parametrize("n_batch", [1, 8, 200])
def test_model(heads: TinyModel, mode: str, n_gpu_layers: Any, n_batch: int) -> None:
    """Whole or in part, in single tokens or batches."""
    error, same = differences(heads, delta_mode=mode, n_batch=n_batch, n_gpu_layers=n_gpu_layers)
    assert same >= 0.98
    assert error <= (MAX_NMSE if same == 1 else 1e-3)


@pytest.mark.parametrize("name", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("compensation", ["residual", "extracted"])
def test_model_quantized(workshop: Path, name: str, compensation: str) -> None:
    """Rows of 256 columns, as K quants need: experts add little to what the base's rounding changes."""
    model = make_model(
        workshop / f"gpu-{name}-{compensation}",
        base={"hidden": 256, "inner": 512, "head_dim": 64},
        srde={"density": 0.02},
        out={"outtype": name, "delta_type": "q8_0", "compensation": compensation},
    )
    for n_batch in (1, 200):
        base, _ = differences(model, delta_mode="off", n_batch=n_batch, n_gpu_layers="all")
        for mode in ("sparse", "gain"):
            error, same = differences(model, delta_mode=mode, n_batch=n_batch, n_gpu_layers="all")
            assert error <= 3 * base
            assert same >= 0.9


@on_a_gpu
def test_contexts_in_threads(heads: TinyModel) -> None:
    """Each as alone, also where the same kernel runs with shared memory of other sizes at once."""
    with Sardine(heads.gguf, n_gpu_layers="all") as m:
        contexts = [m.new_context() for _ in range(4)]
        alone = [c.eval(TOKENS) for c in contexts]

        def again(c: Any) -> Any:
            rows = []
            for _ in range(10):
                c.reset()
                rows.append(c.eval(TOKENS))
            return rows

        with ThreadPoolExecutor(4) as pool:
            for expected, rows in zip(alone, pool.map(again, contexts), strict=True):
                for row in rows:
                    np.testing.assert_array_equal(row, expected)


@on_a_gpu
def test_text_of_the_example(workshop: Path) -> None:
    """64 greedy tokens of tiny-sardine, as on the CPU."""
    from sardine_gguf.convert import convert

    example = Path(__file__).parents[2] / "examples/tiny-sardine"
    path = workshop / "gpu-example.gguf"
    convert(example / "base", example / "srde_weights.pt", path, outtype="q8_0", n_threads=2)
    texts = []
    for n in (0, "all"):
        with Sardine(path, n_gpu_layers=n) as m:
            prompt = m.tokenize("What is 15% of 80?", add_bos=True, special=False)
            texts.append(text_of(m, prompt, max_tokens=64, temperature=0))
    assert texts[0] == texts[1]
