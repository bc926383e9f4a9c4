"""sardine-bench: tokens per second, with llama-bench's tests, of the delta modes in turns."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sardine_gguf import _native
from sardine_gguf.bench_measure import (
    Runner,
    Samples,
    SardineRunner,
    Test,
    decode_bytes,
    measure,
    memory,
    profile,
)
from sardine_gguf.bench_report import FORMATS, Row, render, summary
from sardine_gguf.context import KvType
from sardine_gguf.gpu_layers import add_gpu_flag
from sardine_gguf.model import Sardine
from sardine_gguf.program import EXIT_CODES, EXIT_OK, run_program
from sardine_gguf.repack_flag import add_repack_flag

MODES = ("off", "gain", "sparse")


def _counts(text: str) -> list[int]:
    """Numbers, as llama-bench takes them: 512 or 128,512 or 0."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, a,b,...") from None
    if any(n < 0 or n > 1 << 24 for n in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 0 to {1 << 24}")
    return found


def _pair(text: str) -> tuple[int, int]:
    found = _counts(text)
    if len(found) != 2 or 0 in found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers, PP,TG")
    return found[0], found[1]


def _modes(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= set(MODES) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(MODES)}")
    return found


def build_parser() -> argparse.ArgumentParser:
    """The command line of sardine-bench; the flags are llama-bench's where it has them."""
    from sardine_gguf import __version__

    p = argparse.ArgumentParser(
        prog="sardine-bench",
        description="Tokens per second of a model in each delta mode, measured in turns.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    p.add_argument("-m", "--model", metavar="FILE", required=True, help="GGUF file to measure")
    p.add_argument("--adapter", metavar="FILE", help="experts for a base, as in sardine-cli")
    p.add_argument(
        "-p",
        "--n-prompt",
        type=_counts,
        default=[512],
        metavar="N",
        help="prompt tokens (512); 0: none",
    )
    p.add_argument(
        "-n",
        "--n-gen",
        type=_counts,
        default=[128],
        metavar="N",
        help="generated tokens (128); 0: none",
    )
    p.add_argument(
        "-pg",
        type=_pair,
        action="append",
        default=[],
        metavar="PP,TG",
        help="both in one test; may be repeated",
    )
    p.add_argument(
        "-d",
        "--n-depth",
        type=_counts,
        default=[0],
        metavar="N",
        help="tokens in the context before (0)",
    )
    p.add_argument(
        "-b",
        "--batch-size",
        type=int,
        default=512,
        metavar="N",
        help="prompt tokens at a time (512)",
    )
    p.add_argument(
        "-ctk",
        "--cache-type",
        choices=get_args(KvType),
        default="f16",
        help="type of cached keys and values",
    )
    p.add_argument(
        "-t", "--threads", type=int, default=-1, metavar="N", help="CPU threads (-1: all)"
    )
    add_gpu_flag(p)
    add_repack_flag(p)
    p.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="of each test (5)")
    p.add_argument(
        "--delta-mode",
        type=_modes,
        metavar="MODES",
        help="of off,gain,sparse; default: all that the file has",
    )
    p.add_argument("-o", "--output", choices=FORMATS, default="md", help="format (md)")
    p.add_argument("--no-warmup", action="store_true", help="no run before the measured ones")
    p.add_argument("--progress", action="store_true", help="tell on standard error what runs")
    p.add_argument("--version", action="version", version=f"sardine-bench {__version__}")
    return p


def tests_of(args: argparse.Namespace) -> list[Test]:
    """The tests in llama-bench's order: for each depth prompts, generations, pairs.

    Raises:
        ValueError: there are none.
    """
    tests = []
    for depth in args.n_depth:
        tests += [Test(n, 0, depth) for n in args.n_prompt if n]
        tests += [Test(0, n, depth) for n in args.n_gen if n]
        tests += [Test(p, g, depth) for p, g in args.pg]
    if not tests:
        raise ValueError("there is nothing to measure: give -p, -n or -pg a number above 0")
    return tests


def describe(model: Sardine) -> tuple[str, int, int]:
    """Name, bytes of the files, weights of the base."""
    h = model.model.hparams
    files = [model.model.path, *([model.adapter] if model.adapter else [])]
    name = model.metadata.get("general.name") or Path(files[0]).stem
    n_params = sum(
        math.prod(t.shape)
        for t in model.model.file.tensors
        if "_delta." not in t.name and "ffn_gate_inp" not in t.name
    )
    return f"{h['arch']} {name}", sum(Path(f).stat().st_size for f in files), n_params


def rows_of(
    runners: Sequence[Runner], found: list[list[Samples]], load_seconds: float, n_batch: int
) -> list[Row]:
    """One row for each test and mode; the runs that tell shares are made here."""
    rows = []
    for samples in found:
        off = next((s for s in samples if s.runner == "off"), None)
        for runner, s in zip(runners, samples, strict=True):
            assert isinstance(runner, SardineRunner)
            model, t = runner.model, s.test
            desc, size, n_params = describe(model)
            experts = model.model.experts
            shares = profile(runner, t)
            used = memory()
            generates = t.n_gen and not t.n_prompt
            rows.append(
                Row(
                    model_filename=model.model.path,
                    model_desc=desc,
                    model_size=size,
                    model_n_params=n_params,
                    n_expert=experts["expert_count"],
                    n_expert_used=experts["expert_used_count"],
                    delta_mode=s.runner,
                    n_threads=model.session.n_threads,
                    n_batch=min(n_batch, model.session.n_batch),
                    type_kv=model.kv_type,
                    kernels=_native.kernel_path(),
                    repacked_bytes=model.model.repacked[1],
                    load_seconds=load_seconds,
                    n_prompt=t.n_prompt,
                    n_gen=t.n_gen,
                    n_depth=t.depth,
                    test=t.name,
                    avg_ts=s.mean,
                    stddev_ts=s.deviation,
                    samples_ts=s.speeds,
                    ratio_to_off=s.ratio(off) if off else None,
                    delta_share=shares.get("deltas") if shares else None,
                    shares=shares or None,
                    gb_per_s=decode_bytes(model, t) * s.mean / 1e9 if generates else None,
                    memory_peak=used["peak"],
                    memory_resident=used["resident"],
                    memory_anonymous=used["anonymous"],
                    memory_context=model.session.memory_bytes,
                )
            )
    return rows


def run(args: argparse.Namespace) -> int:
    """Measures and prints; errors are the caller's."""
    tests = tests_of(args)
    if args.repetitions < 1:
        raise ValueError(f"-r is {args.repetitions}, expected at least 1")
    n_ctx = max(t.depth + t.n_tokens for t in tests)
    start = time.perf_counter()
    first = Sardine(
        args.model,
        adapter=args.adapter,
        n_ctx=n_ctx,
        n_batch=args.batch_size,
        n_threads=None if args.threads == -1 else args.threads,
        delta_mode=args.delta_mode[0] if args.delta_mode else None,
        kv_type=args.cache_type,
        n_gpu_layers=args.n_gpu_layers,
        repack=args.repack,
    )
    load_seconds = time.perf_counter() - start
    with first:
        modes = args.delta_mode or (list(MODES) if first.model.experts["expert_count"] else ["off"])
        contexts = [
            first if m == first.delta_mode else first.new_context(delta_mode=m) for m in modes
        ]
        runners = [SardineRunner(c) for c in contexts]
        show = (
            (lambda text: print(text, file=sys.stderr, flush=True))
            if args.progress
            else (lambda _: None)
        )
        found = measure(runners, tests, args.repetitions, not args.no_warmup, show)
        rows = rows_of(runners, found, load_seconds, args.batch_size)
    print(render(rows, args.output))
    if args.output == "md":
        print(f"\n{summary(rows)}")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-bench; returns the exit code."""
    return run_program(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
