"""Tokens per second against density and against context length, in turns, kept as JSON and drawn.

    python benchmarks/curves.py base.gguf -o curves.json --density 0.5=a.gguf 1=b.gguf 2=c.gguf 4=d.gguf
        [--depths 0,512,1024,2048,4096 --adapter b.gguf] [--modes off,gain,sparse]
        [-n 16] [-p 128] [-r 5] [-t 2] [-b 512] [--kv-type f16] [--plot curves.png]
    python benchmarks/curves.py -o curves.json --plot curves.png          # draws what is there

Two studies: --density compares off (and gain) with sparse of several experts files, at depth 0;
--depths runs every mode of one file (--adapter) after as many tokens. In each repetition everyone that is
compared runs once, beginning with another, so a disturbance meets all. The JSON is written after each
repetition, and a run that is started again with the same -o goes on where it was: it asks for the same
files, threads, batch, cache type and tests. Ratios are of medians.

Deep contexts are not evaluated (4096 tokens of the 14B shape take a quarter of an hour) but loaded from a
made-up state; made_up_state.py says why a token's time is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from made_up_state import fill_made_up
from sardine_gguf import Sardine, _native
from sardine_gguf.bench_measure import SardineRunner, Test, measure
from sardine_gguf.output_file import replaced_file
from sardine_gguf.program import run_program


@dataclass(frozen=True)
class Line:
    """Who runs: a mode, of an experts file or none. x is its place in the study of density."""

    name: str
    mode: str
    adapter: str | None
    x: float | None = None


class Results:
    """The JSON: settings, and seconds by study, test and line; written whole after each change."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Goes on with a file that is there.

        Raises:
            ValueError: it was made with other settings.
        """
        self.path = path
        self.data: dict[str, Any] = {"settings": settings, "studies": {}}
        if path.exists():
            self.data = json.loads(path.read_text())
            theirs = self.data["settings"]
            different = [k for k in settings if theirs.get(k, settings[k]) != settings[k]]
            if different:
                raise ValueError(
                    f"{path}: made with other settings ({', '.join(different)}): name another file with -o"
                )
            theirs.update(settings)

    def rounds(self, study: str, test: Test, lines: Sequence[Line]) -> int:
        """Repetitions that all of the lines have."""
        found = self.data["studies"].get(study, {}).get(test.name, {})
        return min(len(found.get(line.name, {}).get("seconds", [])) for line in lines)

    def add(self, study: str, test: Test, seconds: dict[Line, float]) -> None:
        """One repetition of everyone."""
        at = self.data["studies"].setdefault(study, {}).setdefault(test.name, {})
        for line, s in seconds.items():
            entry = at.setdefault(
                line.name,
                {"mode": line.mode, "x": line.x, "depth": test.depth, "tokens": test.n_tokens, "seconds": []},
            )  # fmt: skip
            entry["seconds"].append(s)
        with replaced_file(self.path) as append:
            append(memoryview(json.dumps(self.data, indent=1).encode()))


def run_study(
    study: str, lines: Sequence[Line], tests: Sequence[Test], results: Results, base: str,
    options: dict[str, Any], repetitions: int,
) -> None:  # fmt: skip
    """All lines in turns, for each test up to the repetitions asked for."""
    n_ctx = max(t.depth + t.n_tokens for t in tests)
    todo = [t for t in tests if results.rounds(study, t, lines) < repetitions]
    if not todo:
        say(f"{study}: all there")
        return
    with contextlib.ExitStack() as stack:
        models: dict[str | None, Sardine] = {}
        runners: dict[Line, SardineRunner] = {}
        for line in lines:
            say(f"{study}: opening {line.name}")
            first = models.get(line.adapter)
            if first is None:
                first = models[line.adapter] = stack.enter_context(
                    Sardine(
                        base, adapter=line.adapter, n_ctx=n_ctx, delta_mode=line.mode, **options
                    )
                )
                runners[line] = SardineRunner(first)
            else:
                runners[line] = SardineRunner(first.new_context(delta_mode=line.mode))  # type: ignore[arg-type]
        warn_of_memory(base, list(models), runners.values())
        for test in todo:
            done = results.rounds(study, test, lines)
            for i in range(done, repetitions):
                start = time.monotonic()
                order = [lines[(i + j) % len(lines)] for j in range(len(lines))]
                found = measure(
                    [runners[x] for x in order], [test], 1, warmup=i == done, fill=fill_made_up
                )[0]
                results.add(
                    study, test, {x: s.seconds[0] for x, s in zip(order, found, strict=True)}
                )
                by_line = dict(zip(order, found, strict=True))
                speeds = ", ".join(f"{x.name} {by_line[x].speeds[0]:.2f}" for x in lines)
                say(
                    f"{study}: {test.name}: {i + 1}/{repetitions}: {speeds} tokens/s "
                    f"({time.monotonic() - start:.0f} s)"
                )


def warn_of_memory(base: str, adapters: list[str | None], runners: Any) -> None:
    """Files that do not stay in memory are read from the disk again and again: a measure of the disk."""
    contexts = sum(r.model.session.memory_bytes for r in runners)
    files = sum(Path(f).stat().st_size for f in [base, *(a for a in adapters if a)])
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    free = (
        _native.available_memory()
    )  # contexts are allocated, but not touched before they are used
    if files > free or files + contexts > 0.95 * total:
        say(
            f"warning: files of {files / 1e9:.1f} GB and contexts of {contexts / 1e9:.1f} GB may not stay "
            f"in memory ({free / 1e9:.1f} of {total / 1e9:.1f} GB are available)"
        )


def table(data: dict[str, Any]) -> str:
    """Markdown: a row for each study, test and line, with the ratio to off."""
    rows = ["| study | test | | tokens/s | to off | rounds |", "|---|---|---|---|---|---|"]
    for study, tests in data["studies"].items():
        for test, lines in tests.items():
            off = next((e for e in lines.values() if e["mode"] == "off"), None)
            for name, e in lines.items():
                seconds = statistics.median(e["seconds"])
                ratio = f"{statistics.median(off['seconds']) / seconds:.3f}" if off else ""
                rows.append(
                    f"| {study} | {test} | {name} | {e['tokens'] / seconds:.3f} | {ratio} "
                    f"| {len(e['seconds'])} |"
                )
    return "\n".join(rows)


def draw(data: dict[str, Any], path: Path) -> None:
    """Axes for each study and test; medians, and bars from the least to the largest speed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # By study and test without its depth; points: mode, x, then the middle, least and largest speed.
    panels: dict[tuple[str, str], list[tuple[str, float | None, float, float, float]]] = {}
    for study, tests in data["studies"].items():
        for test, lines in tests.items():
            for e in lines.values():
                x = e["depth"] if study == "depth" else e["x"]
                speeds = sorted(e["tokens"] / s for s in e["seconds"])
                middle = e["tokens"] / statistics.median(e["seconds"])
                panels.setdefault((study, test.split(" @ ")[0]), []).append(
                    (e["mode"], x, middle, speeds[0], speeds[-1])
                )
    if not panels:
        raise ValueError("there is nothing to draw yet")
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.4), layout="constrained", squeeze=False
    )
    colours = {"off": "C7", "gain": "C1", "sparse": "C0"}
    for ax, ((study, test), points) in zip(axes[0], panels.items(), strict=True):
        for mode, colour in colours.items():
            mine = sorted(
                (p for p in points if p[0] == mode and p[1] is not None), key=lambda p: p[1]
            )
            flat = [p for p in points if p[0] == mode and p[1] is None]
            if mine:
                x, y = [p[1] for p in mine], [p[2] for p in mine]
                low, high = [p[2] - p[3] for p in mine], [p[4] - p[2] for p in mine]
                ax.errorbar(x, y, [low, high], fmt="o-", color=colour, capsize=2, label=mode)
            for p in flat:  # one speed, whatever the density
                ax.axhline(p[2], color=colour, linestyle="--", label=mode)
        label = "tokens in the context" if study == "depth" else "density, %"
        top = 1.15 * max(p[4] for p in points)
        ax.set(
            xlabel=label,
            ylabel="tokens/s",
            title=f"{'prefill' if test.startswith('pp') else 'decode'} ({test})",
            ylim=(0, top),
        )
        ax.grid(alpha=0.3)
        ax.legend()
    figure.savefig(path, dpi=110)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def numbers(text: str) -> list[int]:
    """Of a list a,b,..."""
    return [int(n) for n in text.split(",") if n]


def identity(path: str) -> list[Any]:
    """What tells that a file is still the one that was measured."""
    found = Path(path).stat()
    return [Path(path).name, found.st_size]


def run(a: argparse.Namespace) -> int:
    """Runs what is missing, prints the table, draws."""
    if a.base is None and not a.o.exists():
        raise ValueError(f"{a.o} is not there: name a base")
    if a.base is not None:
        modes = a.modes.split(",")
        if (
            not (a.n or a.p)
            or not (a.density or a.depths)
            or not set(modes) <= {"off", "gain", "sparse"}
        ):
            raise ValueError("give -n or -p, --density or --depths, and --modes of off,gain,sparse")
        if a.depths and set(modes) != {"off"} and not a.adapter:
            raise ValueError("--depths needs --adapter for modes other than off")
        options = {"n_threads": a.t, "n_batch": a.b, "kv_type": a.kv_type}
        files = {f"density {i}": identity(i.split("=", 1)[1]) for i in a.density}
        files |= {"adapter": identity(a.adapter)} if a.adapter and a.depths else {}
        settings = {**options, "base": identity(a.base), **files}
        results = Results(a.o, settings)

        def tests(depth: int) -> list[Test]:
            return [Test(n, 0, depth) for n in a.p if n] + [Test(0, n, depth) for n in a.n if n]

        if a.density:
            given = [(float(i.split("=", 1)[0]), i.split("=", 1)[1]) for i in a.density]
            # Modes that do not read the values run once, with the first file.
            lines = [Line(m, m, given[0][1]) for m in modes if m != "sparse"]
            if "sparse" in modes:
                lines += [Line(f"sparse {x:g} %", "sparse", f, x) for x, f in given]
            run_study("density", lines, tests(0), results, a.base, options, a.r)
        if a.depths:
            lines = [Line(m, m, a.adapter) for m in modes]
            every = [t for d in a.depths for t in tests(d)]
            run_study("depth", lines, every, results, a.base, options, a.r)
    data = json.loads(a.o.read_text())
    print(table(data))
    if a.plot:
        draw(data, a.plot)
    return 0


def main() -> int:
    """The exit code."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("base", nargs="?", help="leave it out to draw what is there")
    p.add_argument("-o", type=Path, required=True, metavar="JSON")
    p.add_argument("--density", nargs="+", default=[], metavar="PERCENT=FILE")
    p.add_argument("--adapter", help="the experts of --depths")
    p.add_argument("--depths", type=numbers, default=[], metavar="N,...")
    p.add_argument("--modes", default="off,gain,sparse")
    p.add_argument("-n", type=numbers, default=[], metavar="N,...", help="generated tokens")
    p.add_argument("-p", type=numbers, default=[], metavar="N,...", help="prompts")
    p.add_argument("-r", type=int, default=5)
    p.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("-b", type=int, default=512, help="batch size (512)")
    p.add_argument("--kv-type", default="f16", choices=("f16", "f32", "q8_0"))
    p.add_argument("--plot", type=Path, metavar="PNG")
    return run_program(p, run, None)


if __name__ == "__main__":
    sys.exit(main())
