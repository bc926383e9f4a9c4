"""Builds for the GPU of this machine, checks and times everything, in one go and without a network.

    python tools/pack_gpu_sources.py .gpu          # once, where there is a network
    python3 tools/check_gpu.py --sources .gpu [--out DIR] [--budget 570] [--layers 40] [--dry-run]

Written for 16 cores and 10 minutes: the parts follow each other in the order of their importance, one that
fails does not keep the others from running, and what no longer fits the budget is left out and named. Every
step's output is in DIR/check_gpu.log, a summary in DIR/check_gpu.json; standard output ends with a table of
the targets. What was built, and files that were made, are kept, so that a second call goes on where the first
ran out of time: --only tests,speed runs some parts. --dry-run prints the commands.

    build     llama-cpp-python with CUDA for this one architecture, then this package with its kernels
    tests     tests/runtime/test_gpu.py: kernels and models on the GPU against the CPU
    speed     a random model of the 14B shape: off against llama.cpp, sparse at 1 % and 4 % against off; the
              GPU's memory with 1 % and n_ctx 4096
    graph     the models and the speed at 1 % with SARDINE_CUDA_GRAPH=1
    sanitize  the kernels under compute-sanitizer's memcheck and racecheck
    parity    the CPU's own tests with all layers on the GPU
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

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_table import table

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("build", "tests", "speed", "graph", "sanitize", "parity")


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

    def step(
        self, name: str, command: list[str], least: float, most: float = 600, **env: str
    ) -> str | None:
        """Runs a command for up to `most` seconds if at least `least` are left.

        Its output, or None unless it succeeded. A run of pytest that skipped everything did not.
        """
        if self.dry:
            print(*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(command))
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
            text, _ = process.communicate(timeout=max(min(self.left, most), 0))
            code = process.returncode
        except subprocess.TimeoutExpired:
            # With what it started: a build's compilers would go on beside the next steps.
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            code = -1
        if code == 0 and "pytest" in command and not re.search(r"\d+ passed", text):
            code = -2
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
        if code != 0:
            print(*(f"    {line[:200]}" for line in text.splitlines()[-12:]), sep="\n", flush=True)
        return text if code == 0 else None

    def save(self) -> None:
        """Writes the summary."""
        (self.out / "check_gpu.json").write_text(json.dumps(self.results, indent=2) + "\n")


class Missing(Exception):
    """A part of CUDA that building needs."""


def smi(query: str) -> str:
    """A property of the first GPU by nvidia-smi; "" without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", "0"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def cuda_arguments(dry: bool = False) -> list[str]:
    """CMake arguments for parts of CUDA that do not lie with nvcc: cuBLAS from pip's package, the driver.

    Raises Missing where nvcc or cuBLAS is, unless nothing is to be built (`dry`).
    """
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        raise Missing("there is no nvcc")
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
            raise Missing("there is no cublas_v2.h, neither with nvcc nor among Python's packages")
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


def build(r: Run, sources: Path, site: Path, arch: str, cuda: list[str]) -> None:
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
    r.step("wheels", [*install, *(wheels or [str(sources / "wheels" / "*.whl")])], 5, 60)
    cuda = [f"-DCMAKE_CUDA_ARCHITECTURES={arch}", *cuda]
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
    r.step(
        "build sardine_gguf",
        [*install, "-C", f"build-dir={ROOT / 'build/gpu-sardine'}", "."],
        30,
        CMAKE_ARGS=shlex.join([*cuda, "-DSARDINE_CUDA=ON"]),
        **jobs,
    )


def speeds(text: str) -> dict[str, float]:
    """ "test runner" -> tokens per second, of against_llama.py's rows."""
    rows = re.findall(r"^\s*(\S+)\s+(.+?)\s+([\d.]+) t/s", text, re.M)
    return {f"{test} {runner}": float(v) for test, runner, v in rows}


def make(r: Run, name: str, path: Path, options: list[str]) -> bool:
    """A random model's file, unless an earlier call has made it."""
    done = path.with_suffix(".made")  # a file that was being written when its time ended has none
    wanted = " ".join(options)
    command = [sys.executable, "benchmarks/make_model.py", str(path), *options]
    if r.dry:
        r.step(name, command, 20)
        return True
    if done.exists() and done.read_text() == wanted:
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    if r.step(name, command, 20, 150) is None:
        return False
    done.write_text(wanted)
    return True


def speed(r: Run, folder: Path, percent: int, suffix: str = "", **env: str) -> None:
    """Decoding and a prompt, in each mode and by llama.cpp in turns."""
    text = r.step(
        f"speed {percent} %{suffix}",
        [sys.executable, "benchmarks/against_llama.py", str(folder / "base.gguf"), "--adapter",
         str(folder / f"experts{percent}.gguf"), "--modes", "off,sparse", "-ngl", "99", "-r", "3",
         "-n", "64", "-p", "512"],
        30, 120, **env,
    )  # fmt: skip
    if text is not None:
        r.results[f"speeds {percent} %{suffix}"] = speeds(text)


def measure(r: Run, folder: Path, layers: int) -> None:
    """Speed and memory on random files of the 14B shape."""
    shape = ["--layers", str(layers)]
    if not make(r, "make base", folder / "base.gguf", ["--experts", "0", *shape]):
        return
    for percent in (1, 4):
        options = ["--adapter", "--density", str(percent / 100), *shape]
        if not make(r, f"make {percent} %", folder / f"experts{percent}.gguf", options):
            continue
        speed(r, folder, percent)
        if percent == 1:
            memory(r, folder)


def memory(r: Run, folder: Path) -> None:
    """What the driver says that the whole GPU holds more with a model than before it, in MiB."""
    code = (
        "import sys; from sardine_gguf import Sardine; sys.path.insert(0, 'tools'); "
        "from check_gpu import smi; before = int(smi('memory.used')); "
        f"m = Sardine({str(folder / 'base.gguf')!r}, adapter={str(folder / 'experts1.gguf')!r}, "
        "n_ctx=4096, n_gpu_layers='all'); "
        "m.eval([1] * 600); m.eval([1]); print('MiB', int(smi('memory.used')) - before)"
    )
    text = r.step("memory 1 %", [sys.executable, "-c", code], 15, 90)
    if text is not None and (found := re.search(r"MiB (\d+)", text)):
        r.results["device MiB, 1 %, n_ctx 4096"] = int(found[1])


# Files of tests that docs/gpu.md names for all layers on the GPU.
OWN = (
    "parity", "router_logits", "steering", "state", "cancel", "expert_settings", "reuse", "kv_q8", "contexts",
    "consistency",
)  # fmt: skip


def pytest(*arguments: str) -> list[str]:
    """A run of some tests."""
    return [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        *arguments,
    ]


def sanitize(r: Run, tests: str) -> None:
    """The kernels under compute-sanitizer. Launches that are to fail stay away: it would tell of them."""
    tool = shutil.which("compute-sanitizer") or "compute-sanitizer"
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9"]
        chosen = pytest(tests, "-k", "kernels and not that_fail")
        if Path(tool).is_absolute() or r.dry:
            r.step(check, [*command, *chosen], 45, 150)
        else:
            r.results[check] = "left out: there is no compute-sanitizer"


def main() -> int:
    """All steps; 0 if everything was done and is right."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sources", type=Path, default=Path(".gpu"))
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")))
    p.add_argument("--models", type=Path, default=Path("/tmp/sardine-gpu"))
    p.add_argument("--budget", type=float, default=570, help="seconds for everything (570)")
    p.add_argument("--layers", type=int, default=40)
    p.add_argument("--only", default=",".join(PARTS), help="parts to run, with commas between")
    p.add_argument("--dry-run", action="store_true", help="print the commands")
    a = p.parse_args()
    parts = a.only.split(",")
    if unknown := set(parts) - set(PARTS):
        p.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    r = Run(a.out, a.budget, a.dry_run)
    arch = smi("compute_cap").replace(".", "")
    if a.dry_run:
        run_parts(r, parts, a, arch or "90")
        return 0
    if not arch:
        print("check_gpu: nvidia-smi shows no GPU", file=sys.stderr)
        return 1
    a.out.mkdir(parents=True, exist_ok=True)
    r.results["gpu"] = {
        q: smi(q) for q in ("name", "compute_cap", "memory.total", "driver_version")
    }
    try:
        run_parts(r, parts, a, arch)
    finally:
        r.save()
    short = {k: v for k, v in r.results.items() if not isinstance(v, dict) or "tail" not in v}
    print(json.dumps(short, indent=1))
    print(table(r.results))
    done = [v for v in r.results.values() if isinstance(v, dict) and "code" in v]
    return int(
        any(v["code"] != 0 for v in done) or any(isinstance(v, str) for v in r.results.values())
    )


def run_parts(r: Run, parts: list[str], a: argparse.Namespace, arch: str) -> None:
    """Those parts, each whatever became of the others; without a build there is nothing to run."""
    site = ROOT / "build/gpu-site"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(site) + (os.pathsep + before if before else "")
    try:
        cuda = cuda_arguments(r.dry)  # sets where the libraries are, too
        if "build" in parts:
            build(r, a.sources.resolve(), site, arch, cuda)
    except Missing as e:
        if "build" in parts:
            r.results["build"] = f"left out: {e}"
    if not r.dry and not (site / "sardine_gguf").exists():
        r.results["everything else"] = "left out: sardine_gguf is not built"
        return
    r.step("doctor", [sys.executable, "-m", "sardine_doctor"], 5, 60)
    tests = "tests/runtime/test_gpu.py"
    if "tests" in parts:
        r.step("tests", pytest(tests), 30, 180)
    if "speed" in parts:
        measure(r, a.models, a.layers)
    if "graph" in parts:
        r.step("graph", pytest(tests, "-k", "model or text"), 20, 90, SARDINE_CUDA_GRAPH="1")
        if r.dry or (a.models / "experts1.made").exists():
            speed(r, a.models, 1, ", one graph", SARDINE_CUDA_GRAPH="1")
    if "sanitize" in parts:
        sanitize(r, tests)
    if "parity" in parts:
        files = [f"tests/runtime/test_{name}.py" for name in OWN]
        # A thousand contexts take minutes on their own.
        chosen = pytest(*files, "-k", "not leave_nothing")
        # Bounds of f32 are for products of f32 factors.
        r.step("parity", chosen, 60, 400, SARDINE_TEST_GPU="cuda", NVIDIA_TF32_OVERRIDE="0")


if __name__ == "__main__":
    sys.exit(main())
