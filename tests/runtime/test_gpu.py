"""On a real GPU: kernels within the bounds of their emulation, models as on the CPU. Skipped without one.

ggml-cuda rounds activations to 8 bits for quantized products and to TF32 or f16 elsewhere, so whole models
agree to NMSE 1e-4. Where that changes an expert of a token, it and those after it are others: 1e-3.
"""

from __future__ import annotations

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
pytestmark = pytest.mark.skipif(
    not (_FOUND["devices"] and _FOUND["has_kernels"]),
    reason="no GPU here, or a build without SARDINE_CUDA=ON",
)

MAX_NMSE = 1e-4
MODES = ("sparse", "gain", "off")
TOKENS = random_tokens(200, seed=3)


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


def test_kernels_that_fail() -> None:
    """A launch that CUDA refuses is an exception, and the next one works."""
    with pytest.raises(DeviceError, match="CUDA"):
        _native.failing_launch()
    check_rows(make_problem(np.ones((3, 5), bool), 65536, 2, 1, 1, "f32", 1), gpu=True)


def compare(model: TinyModel, *, n_gpu_layers: Any, **options: Any) -> None:
    """Logits, and unless the mode is off the experts, nearly all of which are the same."""
    found = []
    for n in (0, n_gpu_layers):
        with Sardine(model.gguf, n_gpu_layers=n, **options) as m:
            logits = m.eval(TOKENS)
            found.append((logits, m.routing()[0] if m.delta_mode != "off" else np.zeros(1)))
    (expected, experts), (logits, others) = found
    same = float((experts == others).mean())
    assert same >= 0.98
    assert nmse(logits, expected) <= (MAX_NMSE if same == 1 else 1e-3)


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
    compare(heads, delta_mode=mode, n_batch=n_batch, n_gpu_layers=n_gpu_layers)


@pytest.mark.parametrize("name", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("compensation", ["residual", "extracted"])
def test_model_quantized(workshop: Path, name: str, compensation: str) -> None:
    """Rows of 256 columns, as K quants need."""
    model = make_model(
        workshop / f"gpu-{name}-{compensation}",
        base={"hidden": 256, "inner": 512, "head_dim": 64},
        srde={"density": 0.02},
        out={"outtype": name, "delta_type": "q8_0", "compensation": compensation},
    )
    for mode in MODES:
        for n_batch in (1, 200):
            compare(model, delta_mode=mode, n_batch=n_batch, n_gpu_layers="all")


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
