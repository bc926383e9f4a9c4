"""The results of sardine-bench as a table or for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sardine_gguf.units import size_text

FORMATS = ("md", "csv", "json", "jsonl")


@dataclass(frozen=True)
class Row:
    """A test in one mode.

    Attributes:
        model_size: bytes of the files; model_n_params: weights of the base.
        avg_ts, stddev_ts: tokens per second; samples_ts: of each repetition.
        ratio_to_off: of the medians of the repetitions; None where off was not run.
        delta_share: of the time, in the delta ops; None where there are none.
        shares: of the time by part, of a run apart.
        gb_per_s: bytes that a generated token must read times tokens per second; None for prompts.
        memory: bytes of the process: peak, resident, anonymous; memory_context: of this context.
        repacked_bytes: of the copies of weights that --repack made; 0 without.
    """

    model_filename: str
    model_desc: str
    model_size: int
    model_n_params: int
    n_expert: int
    n_expert_used: int
    delta_mode: str
    n_threads: int
    n_batch: int
    type_kv: str
    kernels: str
    repacked_bytes: float
    load_seconds: float
    n_prompt: int
    n_gen: int
    n_depth: int
    test: str
    avg_ts: float
    stddev_ts: float
    samples_ts: list[float]
    ratio_to_off: float | None
    delta_share: float | None
    shares: dict[str, float] | None
    gb_per_s: float | None
    memory_peak: float
    memory_resident: float
    memory_anonymous: float
    memory_context: float


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown(rows: Sequence[Row]) -> str:
    """llama-bench's table with the modes."""
    head = (
        *("model", "size", "params", "experts", "mode", "threads", "test", "t/s"),
        *("to off", "deltas", "GB/s"),
    )
    cells = [
        [
            r.model_desc,
            size_text(r.model_size),
            f"{r.model_n_params / 1e9:.2f} B",
            f"{r.n_expert_used} of {r.n_expert}" if r.n_expert else "",
            r.delta_mode,
            str(r.n_threads),
            r.test,
            f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}",
            _number(r.ratio_to_off, 3),
            _percent(r.delta_share),
            _number(r.gb_per_s, 1),
        ]
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]

    def line(fields: Sequence[str]) -> str:
        first, *others = zip(fields, widths, strict=True)  # the name; all else is right-aligned
        return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)])} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, cells)])


def summary(rows: Sequence[Row]) -> str:
    """A line about the process, for people."""
    r = rows[-1]
    return (
        f"load {r.load_seconds:.2f} s, peak memory {size_text(round(r.memory_peak))} with the file's pages, "
        f"{size_text(round(r.memory_anonymous))} without, kernels {r.kernels}"
        + (f", {size_text(round(r.repacked_bytes))} repacked" if r.repacked_bytes else "")
    )


def render(rows: Sequence[Row], form: str) -> str:
    """All rows in one of FORMATS, without a newline at the end."""
    if form == "md":
        return markdown(rows)
    if form == "json":
        return json.dumps([asdict(r) for r in rows], indent=2)
    if form == "jsonl":
        return "\n".join(json.dumps(asdict(r)) for r in rows)
    out = io.StringIO()
    writer = csv.DictWriter(
        out, list(asdict(rows[0])), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    writer.writeheader()
    for r in rows:
        plain = asdict(r)
        plain["samples_ts"] = ";".join(str(v) for v in r.samples_ts)
        plain["shares"] = json.dumps(r.shares) if r.shares else None
        writer.writerow(plain)
    return out.getvalue().rstrip("\n")
