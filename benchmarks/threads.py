"""What threads and graphs cost besides the work: a node, where threads run, memory per token.

    python benchmarks/threads.py nodes [base.gguf --adapter x1.gguf] [-t 1,2] [-n 64] [-r 5]
    python benchmarks/threads.py pinning [base.gguf --adapter x1.gguf] [-t 2] [-n 16] [-r 3] [-o pinning.json]
    python benchmarks/threads.py allocation [base.gguf --adapter x1.gguf] [-t 2] [-n 64]

Without a file each runs a model with the graph of the 14B model, 40 layers of 8 experts, but matrices of 32
columns, whose time is that of the nodes alone: calls, barriers, and some arithmetic.

nodes: microseconds per token and node; with a file also what share of its token that is.
pinning: OMP_PROC_BIND, OMP_PLACES, OMP_WAIT_POLICY and GOMP_SPINCOUNT against none of them, each in a
    process of its own, in turns. -o keeps what there is after each process, and goes on from there.
allocation: counts what is asked of malloc per token (count_malloc.cpp), and fails if a token takes as
    much as a twentieth of a graph's memory, or if graphs are built or memory stays. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import compile_library
from sardine_gguf import Sardine
from sardine_gguf.bench_measure import SardineRunner, Test, measure, memory, run_once
from sardine_gguf.program import run_program

TINY = {"hidden": 32, "inner": 32, "heads": 1, "heads_kv": 1, "head_dim": 32, "vocab": 512}
VARIANTS: dict[str, dict[str, str]] = {
    "none": {},
    "bind true, cores": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "bind close, cores": {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
    "wait active": {"OMP_WAIT_POLICY": "active"},
    "wait passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1,000,000": {"GOMP_SPINCOUNT": "1000000"},
}
_STEP = 256  # positions; a graph of `off` is built anew for each (cpp/src/kv_cache.h)


def make_tiny(folder: Path, layers: int = 40) -> Path:
    """A model whose nodes have next to nothing to do."""
    import make_model

    path = folder / "tiny.gguf"
    make_model._POOL_ROWS = 1 << 16
    make_model.make(path, layers=layers, out_type="f32", density=0.05, widths=TINY)
    return path


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def graph_nodes(model: Sardine) -> int:
    """Nodes of the context's graph, those that compute nothing (views) among them.

    The runtime counts them for batches alone; one of two tokens has a single token's graph.
    """
    model.session.decode([0, 1])
    return int(model.session.counts["nodes"])


def speeds(
    files: dict[str, Any], threads: list[int], modes: list[str], n: int, r: int
) -> dict[tuple[int, str], tuple[float, int]]:
    """(median seconds of a token, nodes of its graph) by threads and mode, everyone in turns."""
    with Sardine(
        files["model"], adapter=files["adapter"], n_ctx=n + 8, n_batch=8, delta_mode="off", n_threads=1
    ) as first:  # fmt: skip
        keys = [(t, m) for t in threads for m in modes]
        runners = []
        for t, m in keys:
            context = first.new_context(delta_mode=m, n_threads=t)  # type: ignore[arg-type]
            runners.append(SardineRunner(context))
        found = measure(runners, [Test(0, n)], r, progress=say)[0]
        return {
            key: (statistics.median(s.seconds) / n, graph_nodes(runner.model))
            for key, runner, s in zip(keys, runners, found, strict=True)
        }


def nodes(a: argparse.Namespace, tiny: Path) -> None:
    """Prints what a node costs, and its share of a real token."""
    modes = a.modes.split(",")
    small = speeds({"model": tiny, "adapter": None}, a.t, modes, a.n, a.r)
    big = (
        speeds({"model": a.model, "adapter": a.adapter}, a.t, modes, a.n_file, a.r)
        if a.model
        else {}
    )
    print(
        "| threads | mode | nodes | us a token | us a node | the file's nodes | ms a token | nodes' share |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for key, (seconds, count) in small.items():
        tail = "| | | |"
        if key in big:
            took, n = big[key]
            tail = f"| {n} | {took * 1e3:.1f} | {100 * seconds / count * n / took:.2f} % |"
        print(
            f"| {key[0]} | {key[1]} | {count} | {seconds * 1e6:.0f} | {seconds * 1e6 / count:.3f} {tail}"
        )


def child(a: argparse.Namespace, tiny: Path) -> None:
    """One process of `pinning`: prints seconds a token by mode."""
    modes = a.modes.split(",")
    with Sardine(
        a.model or tiny, adapter=a.adapter, n_ctx=a.n + 8, n_batch=8, n_threads=a.t[-1], delta_mode=modes[0]
    ) as first:  # fmt: skip
        runners = [
            SardineRunner(first if m == modes[0] else first.new_context(delta_mode=m))  # type: ignore[arg-type]
            for m in modes
        ]
        found = measure(runners, [Test(0, a.n)], 1)[0]
        print(json.dumps({s.runner: s.seconds[0] / a.n for s in found}))


def clean_environment(variant: dict[str, str]) -> dict[str, str]:
    """This one's without any setting of OpenMP, and with the variant's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    return {**kept, **variant}


def pinning(a: argparse.Namespace, tiny: Path) -> None:
    """Runs every variant in turns, and prints medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    if a.o and a.o.exists():
        found |= json.loads(a.o.read_text())
    names = list(VARIANTS)
    command = [sys.executable, __file__, "child", str(a.model or tiny), "-n", str(a.n)]
    command += [
        "-t",
        str(a.t[-1]),
        "--modes",
        a.modes,
        *(["--adapter", a.adapter] if a.adapter else []),
    ]
    for i in range(a.r):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            if len(found[name]) > i:
                continue
            out = subprocess.run(
                command,
                env=clean_environment(VARIANTS[name]),
                capture_output=True,
                text=True,
                check=False,
            )
            if out.returncode:
                sys.exit(f"{name}: {out.stderr}")
            found[name].append(json.loads(out.stdout))
            times = ", ".join(f"{m} {s * 1e3:.3f}" for m, s in found[name][-1].items())
            say(f"{i + 1}/{a.r}: {name}: {times} ms")
            if a.o:
                a.o.write_text(json.dumps(found, indent=1))
    print("| environment | mode | ms a token | speed against none | rounds |")
    print("|---|---|---|---|---|")
    for name, rounds in found.items():
        for m in rounds[0]:
            mine = statistics.median(x[m] for x in rounds)
            none = statistics.median(x[m] for x in found["none"])
            print(f"| {name} | {m} | {mine * 1e3:.3f} | {none / mine:.3f} | {len(rounds)} |")


class Counted:
    """What was asked of malloc; needs count_malloc.cpp preloaded."""

    def __init__(self) -> None:
        lib = ctypes.CDLL(None)
        self._functions = [lib.counted_calls, lib.counted_bytes]
        for f in self._functions:
            f.restype = ctypes.c_uint64

    def now(self) -> tuple[int, int]:
        """Calls and bytes so far."""
        calls, nbytes = (int(f()) for f in self._functions)
        return calls, nbytes


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (n, ctypes.c_size_t)
        for n in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                  "fordblks", "keepcost")
    )  # fmt: skip


def in_use() -> int:
    """Bytes that malloc has given and not got back, of this process."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def allocation_child(a: argparse.Namespace, tiny: Path) -> int:
    """Prints a row for each mode; 1 if a token costs memory."""
    if a.n > _STEP - 8:
        raise ValueError(
            f"-n {a.n}: at most {_STEP - 8}, as off builds a graph each {_STEP} tokens"
        )
    counted, failed, source = Counted(), False, random.Random(0)
    print(
        "| mode | calls a token | bytes a token | graphs built | bytes kept | anonymous memory | a graph |"
    )
    print("|---|---|---|---|---|---|---|")
    for mode in a.modes.split(","):
        with Sardine(
            a.model or tiny, adapter=a.adapter, n_ctx=_STEP, n_batch=8, n_threads=a.t[-1], delta_mode=mode
        ) as m:  # fmt: skip
            runner = SardineRunner(m)
            before = counted.now()
            run_once(runner, Test(0, 1), source)  # builds the graph
            graph = counted.now()[1] - before[1]
            run_once(runner, Test(0, 3), source)
            test = Test(0, a.n)
            start, graphs, kept = counted.now(), m.session.counts["graphs"], in_use()
            anonymous, own = memory()["anonymous"], m.session.memory_bytes
            run_once(runner, test, source)
            calls, nbytes = (x - y for x, y in zip(counted.now(), start, strict=True))
            built, kept = m.session.counts["graphs"] - graphs, in_use() - kept
            anonymous = memory()["anonymous"] - anonymous
            print(
                f"| {mode} | {calls / a.n:.1f} | {nbytes / a.n:.0f} | {built} | {kept} | {anonymous:.0f} "
                f"| {graph} |", flush=True,
            )  # fmt: skip
            good = nbytes / a.n < graph / 20 and built == 0 and kept < graph / 20
            failed = failed or not good or m.session.memory_bytes != own
    return int(failed)


def allocation(a: argparse.Namespace, tiny: Path) -> int:
    """Runs allocation_child with malloc counted; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        lib = compile_library(
            Path(__file__).with_name("count_malloc.cpp"), Path(folder) / "count_malloc.so"
        )
        command = [
            sys.executable,
            __file__,
            "allocation-child",
            str(a.model or tiny),
            "-n",
            str(a.n),
        ]
        command += [
            "-t",
            str(a.t[-1]),
            "--modes",
            a.modes,
            *(["--adapter", a.adapter] if a.adapter else []),
        ]
        code = subprocess.run(
            command, env={**os.environ, "LD_PRELOAD": str(lib)}, check=False
        ).returncode
    say("a token costs memory" if code else "no token costs memory for its graph")
    return code


def main() -> int:
    """Runs one study; the exit code."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    studies = {"nodes": nodes, "pinning": pinning, "allocation": allocation, "child": child,
               "allocation-child": allocation_child}  # fmt: skip
    p.add_argument("study", choices=studies)
    p.add_argument("model", nargs="?", help="a file; without one the tiny model")
    p.add_argument("--adapter")
    p.add_argument("--modes", default="off,sparse")
    p.add_argument("-t", type=lambda s: [int(n) for n in s.split(",")], metavar="N,...",
                   default=sorted({1, len(os.sched_getaffinity(0))}),
                   help="threads; all but nodes take the last")  # fmt: skip
    p.add_argument("-n", type=int, default=64, help="tokens of a run (64)")
    p.add_argument("--n-file", type=int, default=8, help="the same of nodes' file (8)")
    p.add_argument("-r", type=int, default=5, help="rounds (5)")
    p.add_argument("-o", type=Path, metavar="JSON", help="of pinning")

    def run(a: argparse.Namespace) -> int:
        with tempfile.TemporaryDirectory() as folder:
            needs = a.study == "nodes" or not a.model
            tiny = make_tiny(Path(folder)) if needs else Path()
            return studies[a.study](a, tiny) or 0

    return run_program(p, run, None)


if __name__ == "__main__":
    sys.exit(main())
