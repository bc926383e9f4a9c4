"""sardine-doctor: sound here, and what it says where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sardine_gguf import doctor
from sardine_gguf.doctor_checks import (
    ggml_features,
    gpu_support,
    library_copies,
    processor_features,
    self_test,
)


def run(*args: str, **env: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "sardine_doctor", *args],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    return result.returncode, result.stdout, result.stderr


def test_this_machine() -> None:
    """Nothing is wrong where the tests run; the JSON holds what the text shows."""
    code, out, err = run("--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["ok"] is True
    checks = {c["name"]: c for c in report["checks"]}
    for name in ("sardine_gguf", "python", "ggml", "processor", "devices", "memory", "libraries"):
        assert checks[name]["status"] == "ok", checks[name]
    assert "self-test portable" in checks
    code, out, err = run()
    assert (code, err) == (0, "")
    for c in report["checks"]:
        if c["name"] not in ("memory", "processor"):
            assert c["finding"].split(":")[0] in out
        assert bool(c["remedy"]) == (c["status"] != "ok")


def test_a_kernel_path_that_is_not_there() -> None:
    code, out, err = run("--json", SARDINE_CPU="mmx")
    assert (code, err) == (1, "")
    (check,) = [c for c in json.loads(out)["checks"] if c["status"] == "error"]
    assert "mmx" in check["finding"]
    assert check["remedy"] == "unset SARDINE_CPU"


def test_a_slow_kernel_path_is_a_warning() -> None:
    code, out, _ = run("--json", SARDINE_CPU="portable")
    assert code == 0
    found = {c["name"]: c for c in json.loads(out)["checks"]}["expert kernels"]
    assert found["finding"].startswith("portable")


def test_libraries_that_are_missing() -> None:
    """The package cannot even be imported, and the doctor still answers."""
    code, out, err = run("--json", LLAMA_CPP_LIB_PATH="/nowhere")
    assert (code, err) == (1, "")
    (check,) = json.loads(out)["checks"]
    assert "/nowhere" in check["finding"]
    assert "LLAMA_CPP_LIB_PATH" in check["finding"]
    assert check["status"] == "error"
    assert check["remedy"] == "unset LLAMA_CPP_LIB_PATH"
    assert check["remedy"] in run(LLAMA_CPP_LIB_PATH="/nowhere")[1]


def test_one_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken() -> Any:
        raise RuntimeError("no idea")

    monkeypatch.setattr("sardine_gguf.doctor_checks.CHECKS", (broken, self_test))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "RuntimeError: no idea" in out
    assert "self-test portable" in out


LINE = "7f0000000000-7f0000001000 r-xp 00000000 08:01 {inode}  {path}\n"


def test_copies_of_libraries() -> None:
    """Two mappings of one file are one copy; two files are two."""
    one = [("libllama", 1), ("libggml", 2), ("libggml-base", 3), ("libggml-cpu", 4)]
    maps = "".join(2 * LINE.format(inode=i, path=f"/a/{n}.so.0") for n, i in one)
    assert library_copies(maps).status == "ok"
    twice = library_copies(maps + LINE.format(inode=9, path="/b dir/libggml-base.so"))
    assert twice.status == "error"
    assert "/a/libggml-base.so.0" in twice.finding
    assert "/b dir/libggml-base.so" in twice.finding
    assert library_copies("").status == "error"


def test_processors() -> None:
    cpuinfo = "model name\t: Some CPU\nflags\t\t: fpu avx avx2 fma f16c\n\nmodel name: x\n"
    name, flags = processor_features(cpuinfo)
    assert (name, flags) == ("Some CPU", {"fpu", "avx", "avx2", "fma", "f16c"})
    assert processor_features("") == ("", set())
    everything = dict.fromkeys(("avx", "avx2", "fma", "f16c"), True)
    assert ggml_features(flags, everything).status == "ok"
    assert ggml_features(flags, {**everything, "avx512f": True}).status == "error"
    slow = ggml_features(flags, dict.fromkeys(everything, False))
    assert (slow.status, "avx2" in slow.finding) == ("warning", True)


def test_gpus() -> None:
    """What is there, what is missing and what to do about it."""
    nothing = {
        "devices": [],
        "ggml_has_cuda": False,
        "has_kernels": False,
        "kernels_path": "/x/k.so",
        "kernels_error": "",
    }
    check = gpu_support(nothing)
    assert (check.status, "n_gpu_layers must be 0" in check.finding) == ("ok", True)
    check = gpu_support({**nothing, "has_kernels": True})
    assert (check.status, "-DGGML_CUDA=on" in check.remedy) == ("error", True)
    check = gpu_support({**nothing, "ggml_has_cuda": True})
    assert (check.status, "/x/k.so is missing" in check.finding) == ("warning", True)
    assert "SARDINE_CUDA=ON" in check.remedy
    both = {**nothing, "ggml_has_cuda": True, "has_kernels": True}
    check = gpu_support(both)
    assert (check.status, "no GPU" in check.finding) == ("warning", True)
    check = gpu_support({**both, "devices": [("RTX", 3 << 30, 4 << 30)]})
    assert (check.status, check.finding) == ("ok", "CPU, RTX (3.0 of 4.0 GiB free)")
    stale = "/x/k.so has version 1 of the kernels"
    check = gpu_support({**both, "devices": [("RTX", 3 << 30, 4 << 30)], "kernels_error": stale})
    assert (check.status, check.finding) == ("error", f"CPU; {stale}")
    assert "SARDINE_CUDA=ON" in check.remedy


SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "scripts"
]
_START = """
import importlib, sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sardine_gguf":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
module, name = sys.argv[1].split(":")
sys.exit(getattr(importlib.import_module(module), name)())
"""


@pytest.mark.parametrize("program", SCRIPTS)
def test_interrupted_while_it_is_imported(program: str) -> None:
    """Ctrl-C in the first moment of any program: the exit code, and no traceback."""
    args = [sys.executable, "-c", _START, SCRIPTS[program]]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("program", SCRIPTS)
def test_each_script_starts_its_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    module, name = SCRIPTS[program].split(":")
    with pytest.raises(SystemExit, match="0"):
        getattr(import_module(module), name)()
    assert f"usage: {program} " in capsys.readouterr().out
