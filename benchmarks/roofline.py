"""Each part of a token against what this machine can do at most: bytes, operations, measured time.

    python benchmarks/roofline.py base.gguf [--adapter x1.gguf] [-n 16] [-p 128,512] [-d 0,4096]
        [--modes off,sparse] [-t 2] [-r 3] [-b 512] [--gib 2] [--seconds 2] [-o roofline.json]

Limits first, with the threads asked for: bytes read from memory and from the last cache (machine.cpp: sums
of 64-bit words, checked), float32 multiply-adds, products of bytes, and ggml's own products of the file's
types with matrices that stay in the caches. Then a table for each mode and test. "By bytes" is the part's
bytes at the memory's rate; "by operations" its products at ggml's rate, and its float32 multiply-adds at
the vector units' rate. The ratio is of the measured time to the larger of the two. A part that is left out
of the model of costs (norms, rope, swiglu, copies) has no least time: it is in "rest". Measured times are
those of sardine-bench's profile, each part's median of -r runs; a prompt's are of the whole prompt, a
generation's of a token.

The memory's rate is measured again before and after each table, which takes the larger: on a shared machine
it halves and doubles from minute to minute, and a table whose two rates differ is to be measured again.

-d fills contexts with made-up keys and values (made_up_state.py). Markdown on standard output; progress on
standard error; -o keeps everything as JSON, written after each table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import Limits, limits, read_rate, type_name
from made_up_state import fill_made_up
from sardine_gguf import Sardine
from sardine_gguf.bench_cost import Cost, costs
from sardine_gguf.bench_measure import SardineRunner, Test, profile_ns, run_once
from sardine_gguf.program import run_program

ORDER = ("ffn", "attention products", "output", "deltas", "router", "attention", "rest")


def product_seconds(cost: Cost, limit: Limits, n_tokens: int) -> float:
    """Least time by operations, at the rate of ggml's products of n_tokens at a time."""
    seconds = cost.floats / limit.floats
    for kind, n in cost.products.items():
        seconds += n / limit.products[kind, n_tokens]
    return seconds


@dataclasses.dataclass(frozen=True)
class Line:
    """One part; times in seconds, None where nothing is known."""

    part: str
    gb: float | None
    gflop: float | None
    by_bytes: float | None
    by_operations: float | None
    measured: float | None

    @property
    def least(self) -> float | None:
        """The larger of the two that are known."""
        known = [s for s in (self.by_bytes, self.by_operations) if s is not None]
        return max(known) if known else None

    @property
    def ratio(self) -> float | None:
        """Measured to least; None of a part that is not all of what was measured."""
        if self.measured is None or self.by_operations is None or not self.least:
            return None
        return self.measured / self.least


def lines_of(
    found: dict[str, Cost], seconds: dict[str, float], limit: Limits, n_tokens: int
) -> list[Line]:
    """A line for each part.

    Args:
        found: costs by part.
        seconds: measured, by part.
        n_tokens: tokens at a time. The output's product is of one.
    """
    out = []
    for part in ORDER:
        cost, took = found.get(part), seconds.get(part)
        if cost is None and took is None:
            continue
        if cost is None or part == "rest":
            gb = cost.nbytes / 1e9 if cost else None
            out.append(
                Line(part, gb, None, cost.nbytes / limit.memory if cost else None, None, took)
            )
            continue
        rows = 1 if part == "output" else n_tokens
        out.append(
            Line(
                part,
                cost.nbytes / 1e9,
                2 * cost.multiply_adds / 1e9,
                cost.nbytes / limit.memory,
                product_seconds(cost, limit, rows),
                took,
            )
        )
    return out


def markdown(lines: list[Line]) -> str:
    """The table; its last row sums the parts, of least times each part's larger one."""

    def cell(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "" if value is None else f"{value * scale:.{digits}f}"

    rows = [
        "| part | GB | GFLOP | least by bytes, ms | least by operations, ms | measured, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        rows.append(
            f"| {x.part} | {cell(x.gb, 3)} | {cell(x.gflop, 3)} | {cell(x.by_bytes, 2, 1e3)} "
            f"| {cell(x.by_operations, 2, 1e3)} | {cell(x.measured, 2, 1e3)} | {cell(x.ratio, 2)} |"
        )
    least, measured = sum(x.least or 0 for x in lines), sum(x.measured or 0 for x in lines)
    rows.append(
        f"| all | {sum(x.gb or 0 for x in lines):.3f} | {sum(x.gflop or 0 for x in lines):.3f} "
        f"| {least * 1e3:.2f} (the larger of each part) | | {measured * 1e3:.2f} | {measured / least:.2f} |"
    )
    return "\n".join(rows)


def limits_markdown(limit: Limits) -> str:
    """What was measured of the machine."""
    rows = [
        f"| limit, {limit.n_threads} threads | |",
        "|---|---|",
        f"| read from memory ({limit.memory_size / 1e9:.1f} GB) | {limit.memory / 1e9:.1f} GB/s |",
    ]
    if limit.cache is not None:
        rows.append(
            f"| read from the last cache ({limit.cache_size / 1e6:.1f} MB) | {limit.cache / 1e9:.1f} GB/s |"
        )
    rows.append(f"| float32 multiply-adds | {limit.floats / 1e9:.1f} G/s |")
    if limit.bytes_ is not None:
        rows.append(f"| multiply-adds of bytes | {limit.bytes_ / 1e9:.1f} G/s |")
    rows += [
        f"| ggml's multiply-adds in the caches, {type_name(kind)}, {n} at a time | {rate / 1e9:.1f} G/s |"
        for (kind, n), rate in limit.products.items()
    ]
    return "\n".join(rows)


def measured_seconds(runner: SardineRunner, test: Test, repetitions: int) -> dict[str, float]:
    """Seconds by part, of a prompt or of a generated token; medians."""
    source = random.Random(0)
    fill_made_up(runner, test.depth, source)
    run_once(runner, Test(test.n_prompt, min(test.n_gen, 1)), source)  # warm-up
    runs = [profile_ns(runner, test, fill_made_up) for _ in range(repetitions)]
    parts = {part for run in runs for part in run}
    per = 1e9 * (test.n_gen or 1)
    return {part: statistics.median(run.get(part, 0) for run in runs) / per for part in parts}


def numbers(text: str) -> list[int]:
    """Of a list a,b,..."""
    return [int(n) for n in text.split(",") if n]


def run(a: argparse.Namespace) -> int:
    """Prints the limits, and a table for each mode and test."""
    tests = [Test(n, 0, d) for d in a.d for n in a.p if n]
    tests += [Test(0, n, d) for d in a.d for n in a.n if n]
    if not tests or a.r < 1:
        raise ValueError("nothing to measure: give -n or -p a number above 0, -r at least 1")

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with Sardine(
        a.model, adapter=a.adapter, n_ctx=max(t.depth + t.n_tokens for t in tests), n_batch=a.b,
        n_threads=a.t, delta_mode="off",
    ) as first:  # fmt: skip
        runners = [
            SardineRunner(first if m == "off" else first.new_context(delta_mode=m))
            for m in a.modes.split(",")
        ]
        kinds = {k for c in costs(first, 1).values() for k in c.products}
        n_batch = first.session.n_batch
        sizes = {1, *(min(t.n_prompt, n_batch) for t in tests if t.n_prompt)}
        limit = limits(a.t, kinds, sizes, a.gib, a.seconds, progress)
        print(limits_markdown(limit), flush=True)
        record: dict[str, Any] = {
            "limits": {
                **dataclasses.asdict(limit),
                "products": [[*k, v] for k, v in limit.products.items()],
            },
            "tables": [],
        }
        for test in tests:
            for runner in runners:
                progress(f"{test.name}: {runner.name}")
                if test.n_prompt:
                    found, size = (
                        costs(runner.model, test.n_prompt, test.depth),
                        min(test.n_prompt, n_batch),
                    )
                else:
                    found, size = costs(runner.model, 1, test.depth + test.n_gen / 2 - 1), 1
                before = read_rate(limit.memory_size, a.t, a.seconds / 2)
                seconds = measured_seconds(runner, test, a.r)
                after = read_rate(limit.memory_size, a.t, a.seconds / 2)
                now = dataclasses.replace(limit, memory=max(before, after))
                lines = lines_of(found, seconds, now, size)
                what = "the prompt" if test.n_prompt else "a token"
                rates = f"memory {before / 1e9:.1f} GB/s before, {after / 1e9:.1f} after"
                print(
                    f"\n{test.name}, {runner.name}, {what}; {rates}:\n\n{markdown(lines)}",
                    flush=True,
                )
                record["tables"].append(
                    {
                        "test": test.name,
                        "mode": runner.name,
                        "memory": [before, after],
                        "lines": [dataclasses.asdict(x) for x in lines],
                    }
                )
                if a.o:
                    a.o.write_text(json.dumps(record, indent=1))
    return 0


def main() -> int:
    """The exit code."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--adapter")
    p.add_argument("--modes", default="off,sparse")
    p.add_argument("-n", type=numbers, default=[16], metavar="N,...", help="generated tokens")
    p.add_argument("-p", type=numbers, default=[128], metavar="N,...", help="prompts; 0: none")
    p.add_argument("-d", type=numbers, default=[0], metavar="N,...", help="depths")
    p.add_argument("-r", type=int, default=3, help="profiled runs of each (3)")
    p.add_argument("-b", type=int, default=512, help="batch size (512)")
    p.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--gib", type=float, default=2.0, help="what is read from memory (2)")
    p.add_argument("--seconds", type=float, default=2.0, help="of each limit (2)")
    p.add_argument("-o", type=Path, metavar="JSON")
    return run_program(p, run, None)


if __name__ == "__main__":
    sys.exit(main())
