"""The parts of tools/ and benchmarks/ that can be checked without a GPU or a network."""

from __future__ import annotations

import importlib.util
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("vendor/llama.cpp/ggml/src/ggml-cuda/mmq.cu", True),
        ("vendor/llama.cpp/ggml/src/ggml-cuda/template-instances/mmq-instance-q4_k.cu", True),
        ("vendor/llama.cpp/common/arg.cpp", True),
        ("vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp", False),
        ("vendor/llama.cpp/models/ggml-vocab-bert.gguf", False),
        ("vendor/llama.cpp/.github/workflows/build.yml", False),
        ("llama_cpp/llama.py", True),
        ("docs/index.md", False),
    ],
)
def test_what_is_packed(path: str, wanted: bool, tmp_path: Path) -> None:
    """Only what a build with CUDA reads, without the archive's first folder."""
    (tmp_path / "file").write_text("x")
    sdist = tmp_path / "s.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tmp_path / "file", f"llama_cpp_python-0.3.36/{path}")
    pack = tool("pack_gpu_sources")
    assert pack.wanted(PurePosixPath(path)) is wanted
    pack.cut(sdist, tmp_path / "out")
    assert (tmp_path / "out" / path).exists() is wanted


def test_rows_of_speed() -> None:
    """As benchmarks/against_llama.py prints them."""
    text = (
        "llama.cpp, repack 0: loaded in 0.32 s\n"
        "    tg64 llama fa=1,ub=512,repack=0    100.500 t/s  1.000  [100.1 100.9]\n"
        "    tg64 sparse                         95.000 t/s  0.945  [95.0]\n"
    )
    assert tool("check_gpu").speeds(text) == {
        "tg64 llama fa=1,ub=512,repack=0": 100.5,
        "tg64 sparse": 95.0,
    }


def test_a_step_that_fails_or_has_no_time_is_told(tmp_path: Path) -> None:
    check = tool("check_gpu")
    r = check.Run(tmp_path, budget=60, dry=False)
    assert r.step("fine", ["echo", "done"], 1) == "done\n"
    assert r.step("broken", ["sh", "-c", "echo no; exit 3"], 1) is None
    assert r.step("late", ["echo"], 61) is None
    assert r.results["fine"]["code"] == 0
    assert r.results["broken"] == {**r.results["broken"], "code": 3, "tail": ["no"]}
    assert r.results["late"].startswith("left out")
    r.save()
    assert "=== broken: code 3" in (tmp_path / "check_gpu.log").read_text()
    assert (tmp_path / "check_gpu.json").exists()


def test_a_step_out_of_time_ends_with_all_it_started(tmp_path: Path) -> None:
    """Its grandchild holds the pipe: only once that is dead too does the step return early."""
    check = tool("check_gpu")
    r = check.Run(tmp_path, budget=0.5, dry=False)
    begin = time.monotonic()
    assert r.step("slow", ["sh", "-c", "echo begun; sleep 60 & wait"], 0) is None
    assert time.monotonic() - begin < 50
    assert (r.results["slow"]["code"], r.results["slow"]["tail"]) == (-1, ["begun"])


def test_every_part_runs_though_others_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that fail as told; the others print what theirs would. The table has every target."""
    check = tool("check_gpu")
    rows = "tg64 llama fa=1,ub=512,repack=0 100.0 t/s\\ntg64 off 95.0 t/s\\ntg64 sparse 92.0 t/s\\n"
    rows += "pp512 off 2000.0 t/s\\npp512 sparse 1500.0 t/s\\n"
    ran = []

    class Scripted(check.Run):  # type: ignore[misc, name-defined]
        def step(self, name: str, command: list[str], *limits: float, **env: str) -> str | None:
            ran.append(name)
            if name in ("doctor", "graph", "memcheck"):
                return super().step(name, ["sh", "-c", "echo 1 failed, 2 passed; exit 1"], *limits)
            text = (
                rows
                if name.startswith("speed")
                else "MiB 10445"
                if name.startswith("mem")
                else "3 passed"
            )
            pytest_like = ["pytest"] if "pytest" in command else []
            return super().step(
                name, ["sh", "-c", f"printf '{text}'", *pytest_like], *limits, **env
            )

    (tmp_path / "build/gpu-site/sardine_gguf").mkdir(parents=True)
    monkeypatch.setattr(check, "Run", Scripted)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "smi", lambda query: {"compute_cap": "9.0"}.get(query, "x"))
    monkeypatch.setattr(check, "cuda_arguments", lambda dry: [])
    monkeypatch.setattr(check.shutil, "which", lambda name: "/bin/" + name)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(
        sys, "argv", ["check_gpu", "--out", str(tmp_path), "--models", str(tmp_path / "models")]
    )
    assert check.main() == 1
    for name in ("tests", "speed 4 %", "memory 1 %", "speed 1 %, one graph", "racecheck", "parity"):
        assert name in ran
    table = {
        cells[1].strip(): [c.strip() for c in cells[4:6]]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.split("|")) == 7
    }
    assert table == {
        "target": ["measured", "verdict"],
        "sparse 1 %, decode / off": ["0.968", "goal"],
        "sparse 4 %, decode / off": ["0.968", "goal"],
        "off, decode / llama.cpp": ["0.950", "must"],
        "sparse 1 %, prefill 512 / off": ["0.750", "MISSED"],
        "sparse 1 %, decode / off, one graph": ["0.968", "goal"],
        "device GiB, 1 %, n_ctx 4096": ["10.20", "must"],
        "GPU equals CPU, kernels and models": ["3", "ok"],
        "the same in one graph per step": ["1/2", "FAILED"],
        "memcheck is clean": ["1/2", "FAILED"],
        "racecheck is clean": ["3", "ok"],
        "the CPU's own tests on the GPU": ["3", "ok"],
    }
    # The files that were made are not made again; one part alone runs alone.
    ran.clear()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "speed"])
    check.main()
    assert ran == ["doctor", "speed 1 %", "memory 1 %", "speed 4 %"]


def test_tests_that_were_all_skipped_are_a_failure(tmp_path: Path) -> None:
    """As they are where ggml finds no GPU."""
    r = tool("check_gpu").Run(tmp_path, budget=60, dry=False)
    assert r.step("tests", ["sh", "-c", "echo 91 skipped in 1 s", "pytest"], 1) is None
    assert r.results["tests"]["code"] == -2


@pytest.mark.parametrize("adapter", [False, True])
def test_random_models_are_whole(
    adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What benchmarks/make_model.py writes opens and computes; here a small shape."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import make_model
    from sardine_gguf import Sardine

    monkeypatch.setattr(make_model, "_POOL_ROWS", 1 << 16)
    widths = {
        "hidden": 256, "inner": 512, "heads": 4, "heads_kv": 2, "head_dim": 64, "vocab": 1024,
    }  # fmt: skip
    base, experts = tmp_path / "base.gguf", tmp_path / "experts.gguf"
    make_model.make(base, layers=2, n_experts=0 if adapter else 3, widths=widths)
    if adapter:
        make_model.make(experts, layers=2, n_experts=3, adapter=True, widths=widths)
    with Sardine(base, adapter=experts if adapter else None, n_ctx=64) as m:
        assert m.model.experts["expert_count"] == 3
        assert np.isfinite(m.eval([5, 6, 7])).all()
