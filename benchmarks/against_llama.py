"""Tokens per second side by side with llama.cpp (llama-cpp-python) on the same base, in turns.

    python benchmarks/against_llama.py base.gguf [--adapter experts.gguf] [-p 128,512] [-n 32] [-r 5] [-ngl N]
        [--modes off,sparse] [--repack 0,1] [--llama fa=1,ub=512,repack=0] [--llama fa=0,ub=512,repack=1]
        [--no-warmup]

Each --llama is one more runner: flash attention (fa), micro-batch (ub), weights repacked at load (repack;
5.7 GB more at the 14B shape; llama.cpp's default) or mapped. --repack does the same for ours: 0, 1 or both.
Prints medians of tokens per second, and ratios to the first --llama that follow from the medians.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import time
from contextlib import ExitStack

import llama_cpp
from sardine_gguf import Sardine
from sardine_gguf.bench_measure import Runner, SardineRunner, Test, measure
from sardine_gguf.program import run_program

_silent = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaModel:
    """The weights, mapped or repacked."""

    def __init__(self, path: str, repack: bool, n_gpu_layers: int) -> None:
        params = llama_cpp.llama_model_default_params()
        params.use_mmap, params.use_extra_bufts = not repack, repack
        params.n_gpu_layers = n_gpu_layers
        start = time.perf_counter()
        self.handle = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            sys.exit(f"{path}: llama.cpp does not load it")
        self.seconds = time.perf_counter() - start
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))


class LlamaRunner:
    """A context of llama.cpp."""

    def __init__(
        self, model: LlamaModel, name: str, n_ctx: int, ub: int, fa: int, threads: int
    ) -> None:
        self.name, self.model, self.n_vocab = name, model, model.n_vocab
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, max(n_ctx, ub), ub
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = fa
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            sys.exit(f"{name}: llama.cpp makes no such context")
        self.memory = llama_cpp.llama_get_memory(self.handle)

    def truncate(self, n_tokens: int) -> None:
        """Forgets all but the first n_tokens."""
        llama_cpp.llama_memory_seq_rm(self.memory, 0, n_tokens, -1)

    def decode(self, tokens: list[int]) -> None:
        """Appends tokens and computes the logits of the last one."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        code = llama_cpp.llama_decode(self.handle, llama_cpp.llama_batch_get_one(ids, len(tokens)))
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        llama_cpp.llama_synchronize(self.handle)


def run(a: argparse.Namespace) -> int:
    """Prints a row for each test and runner."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    tests = [Test(int(n), 0, a.d) for n in a.p.split(",") if n]
    tests += [Test(0, int(n), a.d) for n in a.n.split(",") if n]
    if not tests:
        raise ValueError("nothing to measure: give -n or -p")
    n_ctx = -(-max(t.n_tokens + t.depth for t in tests) // 256) * 256
    runners: list[Runner] = []
    models: dict[bool, LlamaModel] = {}
    for text in a.llama or ["fa=1,ub=512,repack=0"]:
        options = {k: int(v) for k, v in (part.split("=") for part in text.split(","))}
        repack = bool(options.get("repack", 0))
        if repack not in models:
            models[repack] = LlamaModel(a.base, repack, a.ngl)
            print(f"llama.cpp, repack {int(repack)}: loaded in {models[repack].seconds:.2f} s")
        name = f"llama {text}"
        runners.append(
            LlamaRunner(
                models[repack], name, n_ctx, options.get("ub", 512), options.get("fa", 1), a.t
            )
        )
    modes = [m for m in a.modes.split(",") if m]
    with ExitStack() as stack:
        for repack in (r == "1" for r in a.repack.split(",")):
            start = time.perf_counter()
            first = stack.enter_context(
                Sardine(
                    a.base, adapter=a.adapter, n_ctx=n_ctx, n_batch=a.b, n_threads=a.t, delta_mode="off",
                    n_gpu_layers=a.ngl, repack=repack,
                )
            )  # fmt: skip
            print(f"ours, repack {int(repack)}: loaded in {time.perf_counter() - start:.2f} s")
            for mode in modes:
                context = first if mode == "off" else first.new_context(delta_mode=mode)  # type: ignore[arg-type]
                runners.append(SardineRunner(context, f"{mode}, repacked" if repack else mode))
        for samples in measure(runners, tests, a.r, not a.no_warmup):
            for s in samples:
                speed = s.test.n_tokens / statistics.median(s.seconds)
                rounds = " ".join(f"{v:.2f}" for v in s.speeds)
                print(
                    f"{s.test.name:>8} {s.runner:28} {speed:8.3f} t/s  {s.ratio(samples[0]):.3f}  [{rounds}]",
                    flush=True,
                )
    return 0


def main() -> int:
    """The exit code."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("base")
    p.add_argument("--adapter")
    p.add_argument("--modes", default="off")
    p.add_argument(
        "--repack", default="0", metavar="0,1", help="ours with mapped weights, repacked, or both"
    )
    p.add_argument("--llama", action="append", default=[], metavar="fa=1,ub=512,repack=0")
    p.add_argument("-p", default="", metavar="N,...")
    p.add_argument("-n", default="", metavar="N,...")
    p.add_argument("-d", type=int, default=0)
    p.add_argument("-r", type=int, default=5)
    p.add_argument("-b", type=int, default=512, help="batch size of ours")
    p.add_argument("-ngl", type=int, default=0, metavar="N", help="layers on the GPU, of both")
    p.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--no-warmup", action="store_true", help="no run before the measured ones")
    return run_program(p, run, None)


if __name__ == "__main__":
    sys.exit(main())
