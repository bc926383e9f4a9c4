"""Speed of convert-sardine's quantization against llama_model_quantize, on the same tensors.

    python benchmarks/quantize_speed.py [--types q8_0 q4_k_m q6_k] [--rounds 5] [--threads N]

Writes a random BF16 model folder and its BF16 GGUF file, then quantizes in turns: ours from the
folder (write_base), llama.cpp's from the GGUF file. Both read from the page cache and write a
complete file; ours also waits for the disk (fsync), which --no-sync leaves out. Prints medians and
ratios of seconds and, for a machine that does other things too, of CPU time. 0.8 is the bound that
the project set itself.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from pathlib import Path

import llama_cpp
from synthetic import base_folder, tensors

WIDTHS = {
    "hidden": 2048,
    "inner": 8192,
    "heads": 16,
    "heads_kv": 4,
    "head_dim": 128,
    "vocab": 8192,
}


_silent = llama_cpp.llama_log_callback(lambda level, text, data: None)


def llama_quantize(source: Path, target: Path, ftype: int, threads: int) -> None:
    """llama_model_quantize."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, threads
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0


def main() -> None:
    """Prints one row for each type."""
    from sardine_gguf.convert import write_base
    from sardine_gguf.convert.schema import FILE_TYPES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=["q8_0", "q6_k", "q4_k_m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-sync", action="store_true", help="do not wait for the disk")
    args = parser.parse_args()
    if args.no_sync:
        os.fsync = lambda fd: None  # type: ignore[assignment]
    millions = (
        sum(s[0] * (s[1] if len(s) > 1 else 1) for _, s in tensors(args.layers, **WIDTHS)) / 1e6
    )
    print(f"{millions:.0f} M weights, {args.threads} threads, medians of {args.rounds} rounds")
    print("Millions of weights in a second, and in a second of CPU time:")
    print("| type | ours | llama.cpp | ratio | ours, CPU | llama.cpp, CPU | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = base_folder(folder / "base", args.layers, **WIDTHS)
        source, target = folder / "bf16.gguf", folder / "out.gguf"
        write_base(base, source, "bf16")
        for kind in args.types:
            # Of ours and of llama.cpp's: seconds, and seconds of CPU time.
            times: tuple[list[float], ...] = ([], [], [], [])
            for _ in range(args.rounds):
                for i in range(2):
                    wall, cpu = time.monotonic(), time.process_time()
                    if i == 0:
                        write_base(base, target, kind, force=True, n_threads=args.threads)
                    else:
                        llama_quantize(source, target, FILE_TYPES[kind], args.threads)
                    times[i].append(time.monotonic() - wall)
                    times[2 + i].append(time.process_time() - cpu)
            ours, theirs, our_cpu, their_cpu = (millions / statistics.median(t) for t in times)
            print(
                f"| {kind} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} "
                f"| {our_cpu:.1f} | {their_cpu:.1f} | {our_cpu / their_cpu:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
