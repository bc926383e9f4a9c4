"""Models that many tests read, converted once.

With SARDINE_TEST_GPU=cuda every model that a test opens without saying where has all its layers on the GPU,
with SARDINE_TEST_GPU=emulated on one that the CPU plays (docs/gpu.md names the files of tests for it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import EXAMPLE, TinyModel, make_model
from sardine_gguf import Sardine, _native
from sardine_gguf.convert import write_base


@pytest.fixture(scope="session", autouse=True)
def all_layers_on_the_gpu() -> Iterator[None]:
    """Changes the default of n_gpu_layers, if SARDINE_TEST_GPU asks for it."""
    kind = os.environ.get("SARDINE_TEST_GPU", "")
    if not kind:
        yield
        return
    assert kind in ("cuda", "emulated"), f"SARDINE_TEST_GPU is {kind!r}, expected cuda or emulated"
    defaults = Sardine.__init__.__kwdefaults__
    assert defaults["n_gpu_layers"] == 0
    if kind == "emulated":
        _native.emulate_gpu(1 << 34)
    defaults["n_gpu_layers"] = "all"
    yield
    defaults["n_gpu_layers"] = 0
    if kind == "emulated":
        _native.emulate_gpu(0)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for converted models."""
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="session")
def example_base(workshop: Path) -> Path:
    """The bundled example's base alone, with its tokenizer and template."""
    path = workshop / "example-base.gguf"
    write_base(EXAMPLE / "base", path, "q8_0", n_threads=1)
    return path


@pytest.fixture(scope="session")
def tiny(workshop: Path) -> TinyModel:
    """E 5, k 3, inner 100 (no multiple of 32), all of the 3 layers, float32."""
    return make_model(
        workshop / "tiny", top_k=3, base={"inner": 100}, srde={"n_experts": 5, "density": 0.05}
    )


@pytest.fixture(scope="session")
def wide(workshop: Path) -> TinyModel:
    """Heads of 64, as GPUs have flash attention for; a context of 256 tokens, four times YaRN's original."""
    return make_model(
        workshop / "heads64",
        base={"heads": 2, "heads_kv": 1, "head_dim": 64},
        srde={"n_experts": 4, "density": 0.05},
    )


@pytest.fixture(scope="session")
def narrow(workshop: Path) -> TinyModel:
    """The same of heads of 32, a whole block of q8_0, two of which are cached."""
    return make_model(
        workshop / "heads32", base={"head_dim": 32}, srde={"n_experts": 4, "density": 0.05}
    )


@pytest.fixture(scope="session")
def small(workshop: Path) -> TinyModel:
    """A small file for damage: 2 layers, 3 experts, q8_0 values in column blocks of 20."""
    return make_model(
        workshop / "small",
        base={"hidden": 32, "inner": 33, "layers": 2, "heads": 2, "heads_kv": 1, "vocab": 270},
        srde={"n_experts": 3, "density": 0.05},
        out={"block_columns": 20, "delta_type": "q8_0"},
    )


@pytest.fixture(scope="session")
def small_shared(small: TinyModel) -> TinyModel:
    """The same quantized, with the weights at the positions in a shared part (version 2)."""
    path = small.converted(
        "shared.gguf", outtype="q8_0", delta_type="q8_0", block_columns=20,
        compensation="extracted", shared_type="q8_0",
    )  # fmt: skip
    return TinyModel(small.base, small.srde, path, small.top_k)
