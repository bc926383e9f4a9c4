"""Milliseconds that the deltas of a decoded token take, over experts files and numbers of experts.

    python benchmarks/delta_cost.py base.gguf --density 0.5=a.gguf 1=b.gguf 4=c.gguf
        --experts 2=d.gguf 8=b.gguf [--plot out.png] [-r 9] [-t 2]

For each file of --density the cost of top-2; for the last of them also of top-1 to top-4; for each of
--experts that of top-2. All in turns; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from sardine_gguf import _native
from sardine_gguf.program import run_program


def run(a: argparse.Namespace) -> int:
    """Prints a line for each point, and draws them."""
    points: list[tuple[str, float, str, int]] = []
    for item in a.density:
        at, file = item.split("=", 1)
        points.append(("density, %", float(at), file, 2))
    if a.density:
        points += [("top_k", k, a.density[-1].split("=", 1)[1], k) for k in (1, 2, 3, 4)]
    for item in a.experts:
        at, file = item.split("=", 1)
        points.append(("experts", float(at), file, 2))
    models = {
        file: _native.Model(a.base.encode(), adapter=file.encode()) for _, _, file, _ in points
    }
    seconds: list[list[float]] = [[] for _ in points]
    for round_ in range(a.r + 1):  # the first one maps the pages
        for (_, _, file, k), found in zip(points, seconds, strict=True):
            took = _native.time_deltas(
                models[file], _native.kernel_path(), n_tokens=1, k=k, n_threads=a.t, repetitions=1
            )
            if round_:
                found += took
    series: dict[str, list[tuple[float, float]]] = {}
    for (what, at, _, _), found in zip(points, seconds, strict=True):
        ms = 1e3 * statistics.median(found)
        series.setdefault(what, []).append((at, ms))
        print(f"{what:12} {at:5g} {ms:8.2f} ms  (least {1e3 * min(found):.2f})")
    if a.plot:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            1, len(series), figsize=(3.4 * len(series), 3), layout="constrained", squeeze=False
        )
        for ax, (what, found) in zip(axes[0], series.items(), strict=True):
            ax.plot(*zip(*found, strict=True), "o-")
            ax.set(xlabel=what, ylim=(0, 1.1 * max(ms for _, ms in found)), ylabel="ms a token")
            ax.grid(alpha=0.3)
        figure.savefig(a.plot, dpi=110)
    return 0


def main() -> int:
    """The exit code."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("base")
    p.add_argument("--density", nargs="+", default=[], metavar="PERCENT=FILE")
    p.add_argument("--experts", nargs="+", default=[], metavar="N=FILE")
    p.add_argument("--plot")
    p.add_argument("-r", type=int, default=9)
    p.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    return run_program(p, run, None)


if __name__ == "__main__":
    sys.exit(main())
