"""How far layers on the emulated GPU are from the CPU: python tests/runtime/offload_report.py [--rounds]

Random models of several types are evaluated whole and token by token. Each line compares two ways to compute
the same: NMSE of the logits and the experts chosen otherwise, as chosen by the router and with forced ones.
Lines of the CPU against itself say how much of it is the order of sums alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sardine_gguf import Sardine, _native

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))
from models import TinyModel, make_model, nmse, random_tokens

BASES = ("f32", "f16", "q8_0", "q4_k_m")
DELTAS = ("f16", "q8_0")
TOKENS = random_tokens(150, seed=3)
ROUTERS = {"routed": None, "forced": {0: 0.7, 2: 0.3}}
# Which kernels the CPU has, where the layers are, and tokens of a batch.
PAIRS = (
    (("portable", "gpu", 150), ("portable", "cpu", 150)),
    (("portable", "gpu", 1), ("portable", "cpu", 1)),
    (("portable", "gpu", 1), ("portable", "gpu", 150)),
    (("portable", "cpu", 6), ("portable", "cpu", 150)),
    (("portable", "cpu", 1), ("portable", "cpu", 150)),
    (("", "cpu", 150), ("portable", "cpu", 150)),
    (("", "gpu", 150), ("", "cpu", 150)),
    (("", "gpu", 1), ("", "cpu", 1)),
)


@dataclass(frozen=True)
class Found:
    """Logits [n_tokens, n_vocab] and experts [n_layers, n_tokens, k]."""

    logits: NDArray[np.float32]
    experts: NDArray[np.int32]


def work(path: Path, out: Path, kv_type: str, rounds: bool) -> None:
    """Everything that one set of CPU kernels computes; the process has its set by SARDINE_CPU."""
    kernels = os.environ.get("SARDINE_CPU", "")
    runs = sorted({r for pair in PAIRS for r in pair if r[0] == kernels})
    _native.emulate_gpu(1 << 30, rounds=rounds)
    arrays = {}
    for (name, experts), (_, place, n_batch) in itertools.product(ROUTERS.items(), runs):
        with Sardine(
            path,
            kv_type=kv_type,
            n_threads=1,
            n_batch=n_batch,
            experts=experts,
            n_gpu_layers="all" if place == "gpu" else 0,
        ) as m:
            arrays[f"{name} {place} {n_batch} logits"] = m.eval(TOKENS)
            arrays[f"{name} {place} {n_batch} experts"] = m.routing()[0]
    np.savez(out, **arrays)


def evaluate(
    model: TinyModel, kv_type: str, rounds: bool, folder: Path
) -> dict[tuple[str, str, str, int], Found]:
    """By router, kernels, place and batch."""
    found = {}
    for kernels in ("portable", ""):
        out = folder / "found.npz"
        env = {k: v for k, v in os.environ.items() if k != "SARDINE_CPU"}
        command = [
            sys.executable,
            __file__,
            "--work",
            str(model.gguf),
            str(out),
            "--kv-type",
            kv_type,
            *(["--rounds"] if rounds else []),
        ]
        subprocess.run(command, env=env | ({"SARDINE_CPU": kernels} if kernels else {}), check=True)
        with np.load(out) as arrays:
            for key in arrays:
                router, place, n_batch, what = key.split()
                if what == "logits":
                    found[router, kernels, place, int(n_batch)] = Found(
                        arrays[key], arrays[key.replace("logits", "experts")]
                    )
    return found


def describe(run: tuple[str, str, int]) -> str:
    """A run in words."""
    return f"{run[1]} {run[2]}" + ("" if run[0] else ", fast kernels")


def main(argv: list[str] | None = None) -> int:
    """Prints one table for each type of base."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kv-type", default="f16")
    p.add_argument("--rounds", action="store_true", help="as ggml-cuda rounds, not as the CPU")
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--seeds", type=int, default=2, help="models of each type")
    p.add_argument("--bases", default=",".join(BASES))
    p.add_argument("--deltas", default=",".join(DELTAS))
    p.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.work:
        work(*a.work, a.kv_type, a.rounds)
        return 0
    for base, delta in itertools.product(a.bases.split(","), a.deltas.split(",")):
        results = []
        for seed in range(a.seeds):
            with tempfile.TemporaryDirectory() as folder:
                model = make_model(
                    Path(folder),
                    base={
                        "hidden": 256,
                        "inner": 512,
                        "head_dim": 64,
                        "layers": a.layers,
                        "seed": seed,
                    },
                    srde={"density": 0.02},
                    out={"outtype": base, "delta_type": delta},
                )
                results.append(evaluate(model, a.kv_type, a.rounds, Path(folder)))
        n = results[0]["routed", "", "cpu", 1].experts.size * a.seeds
        print(
            f"\n{base} base, {delta} deltas: NMSE, other choices of {n}, NMSE with forced experts"
        )
        for one, other in PAIRS:
            cells = []
            for router in ROUTERS:
                pairs = [(r[router, *one], r[router, *other]) for r in results]
                worst = max(nmse(x.logits, y.logits) for x, y in pairs)
                cells.append(f"{worst:8.1e}")
                if router == "routed":
                    cells.append(f"{sum(int((x.experts != y.experts).sum()) for x, y in pairs):4d}")
            print(f"  {describe(one) + ' / ' + describe(other):48s}", *cells, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
