"""Builds for the GPU of this machine, checks and times everything, in one go and without a network.

    python tools/pack_gpu_sources.py .gpu          # once, where there is a network
    python3 tools/check_gpu.py --sources .gpu [--out DIR] [--budget 570] [--layers 40] [--dry-run]

Written for 16 cores and 10 minutes: the steps follow each other in the order of their importance, and what no
longer fits the budget is left out and named. Every step's output is in DIR/check_gpu.log, a summary in
DIR/check_gpu.json and on standard output. --dry-run prints the commands.

    1 build     llama-cpp-python with CUDA for this one architecture, then this package with its kernels
    2 tests     tests/runtime/test_gpu.py: kernels and models on the GPU against the CPU
    3 sanitize  the kernels under compute-sanitizer's memcheck and racecheck
    4 speed     a random model of the 14B shape: off against llama.cpp, sparse at 1 % and 4 % against off
    5 memory    what the GPU holds with 1 % and n_ctx 4096
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Run:
    """The steps so far."""

    out: Path
    budget: float
    dry: bool
    start: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.monotonic() - self.start)

    def step(self, name: str, command: list[str], least: float, **env: str) -> str | None:
        """Runs a command if at least `least` seconds are left; its output, or None unless it succeeded."""
        if self.dry:
            print(" ".join(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(command))
            return None
        if self.left < least:
            self.results[name] = f"left out: {self.left:.0f} s are left, {least:.0f} are needed"
            return None
        begin = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            text, _ = process.communicate(timeout=max(self.left, 0))
            code = process.returncode
        except subprocess.TimeoutExpired:
            # With what it started: a build's compilers would go on beside the next steps.
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            code = -1
        took = time.monotonic() - begin
        with (self.out / "check_gpu.log").open("a") as log:
            log.write(
                f"\n=== {name}: {shlex.join(command)}\n{text}\n=== {name}: code {code}, {took:.1f} s\n"
            )
        self.results[name] = {
            "code": code,
            "seconds": round(took, 1),
            "tail": text.splitlines()[-12:],
        }
        print(f"{name}: {'ok' if code == 0 else f'FAILED ({code})'}, {took:.1f} s", flush=True)
        return text if code == 0 else None

    def save(self) -> None:
        """Writes the summary."""
        if not self.dry:
            (self.out / "check_gpu.json").write_text(json.dumps(self.results, indent=2) + "\n")


def smi(query: str) -> str:
    """A property of the first GPU by nvidia-smi; "" without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", "0"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def cuda_arguments(dry: bool = False) -> list[str]:
    """CMake arguments for parts of CUDA that do not lie with nvcc: cuBLAS from pip's package, the driver.

    Ends the program where nvcc or cuBLAS is missing, unless nothing is to be built (`dry`).
    """
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        sys.exit("check_gpu: there is no nvcc")
    script = Path(nvcc).resolve()
    small = script.stat().st_size < 4096  # a script that calls it
    wrapped = re.search(r"(/\S+)/bin/nvcc", script.read_text(errors="ignore")) if small else None
    root = Path(wrapped[1]) if wrapped else script.parents[1]
    args = [f"-DCMAKE_CUDA_COMPILER={root / 'bin/nvcc'}", f"-DCUDAToolkit_ROOT={root}"]
    if not any(root.glob("include/cublas_v2.h")) and not any(
        root.glob("targets/*/include/cublas_v2.h")
    ):
        headers = [h for p in sys.path for h in Path(p).glob("nvidia/*/include/cublas_v2.h")]
        if not headers and dry:
            return args
        if not headers:
            sys.exit(
                "check_gpu: there is no cublas_v2.h, neither with nvcc nor among Python's packages"
            )
        place = headers[0].parents[1]
        args.append(f"-DCMAKE_CUDA_FLAGS=-I{headers[0].parent}")
        for name in ("cublas", "cublasLt"):
            args.append(f"-DCUDA_{name}_LIBRARY={next((place / 'lib').glob(f'lib{name}.so.*'))}")
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(
            (str(place / "lib"), str(root / "lib64"), os.environ.get("LD_LIBRARY_PATH", ""))
        ).rstrip(os.pathsep)
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    listed = re.findall(r"libcuda\.so\S* .*=> (\S+)", known)
    places = [*listed, "/usr/local/nvidia/lib64/libcuda.so.1"]
    driver = next((p for p in places if Path(p).exists()), None)
    args.append(f"-DCUDA_cuda_driver_LIBRARY={driver}" if driver else "-DGGML_CUDA_NO_VMM=ON")
    return args


def build(r: Run, sources: Path, site: Path, arch: str) -> bool:
    """Both packages in a folder of their own; a virtual environment would not see those of another one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    install = [
        *pip,
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--upgrade",
        "--target",
        str(site),
    ]
    wheels = sorted(str(w) for w in (sources / "wheels").glob("*.whl"))
    r.step("wheels", [*install, *(wheels or [str(sources / "wheels" / "*.whl")])], 5)
    cuda = [f"-DCMAKE_CUDA_ARCHITECTURES={arch}", *cuda_arguments(r.dry)]
    jobs = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    # Objects stay in build/, so that a build that ran out of time goes on in the next call.
    kept = (site / "llama_cpp/lib/libggml-cuda.so").exists()
    if not kept:
        r.step(
            "build llama-cpp-python",
            [*install, "-C", f"build-dir={ROOT / 'build/gpu-llama'}", str(sources / "llama_cpp_python")],
            60,
            CMAKE_ARGS=shlex.join(
                [*cuda, "-DGGML_CUDA=on", "-DLLAVA_BUILD=OFF", "-DLLAMA_BUILD_TOOLS=OFF",
                 "-DGGML_CUDA_COMPRESSION_MODE=none"]
            ),
            **jobs,
        )  # fmt: skip
    done = r.step(
        "build sardine_gguf",
        [*install, "-C", f"build-dir={ROOT / 'build/gpu-sardine'}", "."],
        30,
        CMAKE_ARGS=shlex.join([*cuda, "-DSARDINE_CUDA=ON"]),
        **jobs,
    )
    return done is not None or r.dry


def speeds(text: str) -> dict[str, float]:
    """ "test runner" -> tokens per second, of against_llama.py's rows."""
    rows = re.findall(r"^\s*(\S+)\s+(.+?)\s+([\d.]+) t/s", text, re.M)
    return {f"{test} {runner}": float(v) for test, runner, v in rows}


def measure(r: Run, python: str, folder: Path, layers: int) -> None:
    """Speed and memory on random files of the 14B shape."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.gguf"
    maker = [python, "benchmarks/make_model.py"]
    shape = ["--layers", str(layers)]
    made = r.step("make base", [*maker, str(base), "--experts", "0", *shape], 30)
    if made is None and not r.dry:
        return
    for percent in (1, 4):
        adapter = folder / f"experts{percent}.gguf"
        density = ["--adapter", "--density", str(percent / 100)]
        made = r.step(f"make {percent} %", [*maker, str(adapter), *density, *shape], 20)
        if made is None and not r.dry:
            continue
        for kind, flags in (("decode", ["-n", "64"]), ("prefill", ["-p", "512"])):
            text = r.step(
                f"{kind} {percent} %",
                [python, "benchmarks/against_llama.py", str(base), "--adapter", str(adapter),
                 "--modes", "off,sparse", "-ngl", "99", "-r", "3", *flags],
                30,
            )  # fmt: skip
            if text is not None:
                r.results[f"speeds {kind} {percent} %"] = speeds(text)
    code = (
        "import subprocess, sys; from sardine_gguf import Sardine; sys.path.insert(0, 'tools'); "
        "from check_gpu import smi; before = int(smi('memory.used')); "
        f"m = Sardine({str(base)!r}, adapter={str(folder / 'experts1.gguf')!r}, n_ctx=4096, "
        "n_gpu_layers='all'); "
        "m.eval([1] * 600); m.eval([1]); print('MiB', int(smi('memory.used')) - before)"
    )
    text = r.step("memory 1 %", [python, "-c", code], 15)
    if text is not None and (found := re.search(r"MiB (\d+)", text)):
        r.results["device MiB, 1 %, n_ctx 4096"] = int(found[1])


def main() -> int:
    """All steps; 0 if everything was done and is right."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sources", type=Path, default=Path(".gpu"))
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")))
    p.add_argument("--models", type=Path, default=Path("/tmp/sardine-gpu"))
    p.add_argument("--budget", type=float, default=570, help="seconds for everything (570)")
    p.add_argument("--layers", type=int, default=40)
    p.add_argument("--dry-run", action="store_true", help="print the commands")
    a = p.parse_args()
    r = Run(a.out, a.budget, a.dry_run)
    arch = smi("compute_cap").replace(".", "")
    if not arch and not a.dry_run:
        print("check_gpu: nvidia-smi shows no GPU", file=sys.stderr)
        return 1
    a.out.mkdir(parents=True, exist_ok=True)
    r.results["gpu"] = {
        q: smi(q) for q in ("name", "compute_cap", "memory.total", "driver_version")
    }
    site = ROOT / "build/gpu-site"
    python = sys.executable
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(site) + (os.pathsep + before if before else "")
    if build(r, a.sources.resolve(), site, arch or "90"):
        r.step("doctor", [python, "-m", "sardine_doctor"], 5)
        tests = [
            python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/runtime/test_gpu.py",
        ]
        r.step("tests", tests, 30)
        r.step(
            "tests, one graph per step", [*tests, "-k", "model or text"], 20, SARDINE_CUDA_GRAPH="1"
        )
        if (tool := shutil.which("compute-sanitizer")) or a.dry_run:
            for check in ("memcheck", "racecheck"):
                r.step(
                    check,
                    [
                        tool or "compute-sanitizer",
                        "--tool",
                        check,
                        "--error-exitcode",
                        "9",
                        *tests,
                        "-k",
                        "kernels",
                    ],
                    60 if check == "memcheck" else 120,
                )
        measure(r, python, a.models, a.layers)
    r.save()
    short = {k: v for k, v in r.results.items() if not isinstance(v, dict) or "tail" not in v}
    print(json.dumps(short, indent=2))
    done = [v for v in r.results.values() if isinstance(v, dict) and "code" in v]
    return int(
        any(v["code"] != 0 for v in done) or any(isinstance(v, str) for v in r.results.values())
    )


if __name__ == "__main__":
    sys.exit(main())
