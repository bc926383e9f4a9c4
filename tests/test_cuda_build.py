"""The GPU's kernels compile for every target that docs/gpu.md names; skipped where there is no nvcc."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = (75, 80, 86, 89, 90, 120)
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

pytestmark = pytest.mark.skipif(
    NVCC is None, reason="nvcc is not installed, so the CUDA kernels are not compiled"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What nvcc and ptxas say about one compilation for all targets; warnings are errors."""
    llama_cpp = importlib.util.find_spec("llama_cpp")
    assert llama_cpp is not None
    assert llama_cpp.origin is not None
    include = Path(llama_cpp.origin).parents[1] / "include"
    command = [
        str(NVCC),
        "-std=c++20",
        "-O3",
        "--threads=0",
        *(f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS),
        *(f"-I{p}" for p in (ROOT / "cpp/cuda", ROOT / "cpp/src", ROOT / "cpp/include", include)),
        "-Werror=all-warnings",
        "-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Werror",
        "-Xptxas=-v",
        "-c",
        str(ROOT / "cpp/cuda/cuda_device.cu"),
        "-o",
        str(tmp_path_factory.mktemp("cuda") / "cuda_device.o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stderr


def test_every_target(compiled: str) -> None:
    """Each kernel for each of them."""
    for kernel in ("delta_rows", "delta_tiles", "route", "group"):
        found = re.findall(rf"Compiling entry function '\w*{kernel}\w*' for 'sm_(\d+)'", compiled)
        assert {int(t) for t in found} == set(TARGETS), kernel


def test_registers_and_shared_memory(compiled: str) -> None:
    """As many threads as a launch has fit: 65,536 registers a block; no static shared memory beside what
    launches ask for. The row kernel for two experts, which decoding runs, spills nothing."""
    threads = {"delta_rows": 1024, "delta_tiles": 1024, "route": 1024, "group": 256}
    entries = re.split(r"Compiling entry function '", compiled)[1:]
    assert len(entries) >= len(TARGETS) * 15
    for e in entries:
        name = e.split("'")[0]
        kernel = next(k for k in threads if k in name)
        registers = int(re.search(r"Used (\d+) registers", e)[1])  # type: ignore[index]
        assert registers * threads[kernel] <= 65536, e
        assert "smem" not in e.split("Compile time")[0]
        if "delta_rowsILNS_9ValueTypeE2ELi2ELNS0_10SharedPartE0" in name:
            assert "0 bytes spill stores, 0 bytes spill loads" in e
