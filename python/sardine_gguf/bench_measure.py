"""Measuring tokens per second: tests as llama-bench defines them, runners in turns."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sardine_gguf.model import Sardine


@dataclass(frozen=True)
class Test:
    """n_prompt tokens evaluated at a time, then n_gen one by one, after `depth` tokens."""

    n_prompt: int
    n_gen: int
    depth: int = 0
    __test__ = False  # for pytest

    @property
    def name(self) -> str:
        """llama-bench's: pp512, tg128, pp512+tg128, tg128 @ d4096."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt + self.n_gen


class Runner(Protocol):
    """Something that evaluates tokens, one of those that are compared."""

    @property
    def name(self) -> str:
        """For the table."""

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""

    def truncate(self, n_tokens: int) -> None:
        """Forgets all but the first n_tokens."""

    def decode(self, tokens: list[int]) -> None:
        """Appends tokens; the logits of the last one are there afterwards."""


class SardineRunner:
    """A context in one delta mode."""

    def __init__(self, model: Sardine, name: str | None = None) -> None:
        self.model = model
        self.name = name or model.delta_mode
        self.n_vocab = int(model.n_vocab)

    def truncate(self, n_tokens: int) -> None:
        """See Runner."""
        self.model.session.truncate(n_tokens)

    def decode(self, tokens: list[int]) -> None:
        """See Runner."""
        self.model.session.decode(tokens)


@dataclass
class Samples:
    """Seconds of one test and runner, one of each repetition."""

    test: Test
    runner: str
    seconds: list[float] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Tokens per second."""
        return [self.test.n_tokens / s for s in self.seconds]

    @property
    def mean(self) -> float:
        """Mean speed."""
        return statistics.fmean(self.speeds)

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the speeds; 0 of a single one, as in llama-bench."""
        return statistics.stdev(self.speeds) if len(self.seconds) > 1 else 0.0

    def ratio(self, other: Samples) -> float:
        """Speed relative to another's: of the medians of the seconds."""
        return statistics.median(other.seconds) / statistics.median(self.seconds)


def _tokens(n: int, n_vocab: int, source: random.Random) -> list[int]:
    return [source.randrange(n_vocab) for _ in range(n)]


def run_once(runner: Runner, test: Test, source: random.Random) -> float:
    """Seconds of one run; the tokens before it are there already."""
    prompt = _tokens(test.n_prompt, runner.n_vocab, source)
    generated = _tokens(test.n_gen, runner.n_vocab, source)
    start = time.perf_counter()
    if prompt:
        runner.decode(prompt)
    for token in generated:
        runner.decode([token])
    return time.perf_counter() - start


def fill(runner: Runner, depth: int, source: random.Random) -> None:
    """A context of `depth` random tokens."""
    runner.truncate(0)
    if depth:
        runner.decode(_tokens(depth, runner.n_vocab, source))


def measure(
    runners: Sequence[Runner],
    tests: Iterable[Test],
    repetitions: int,
    warmup: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> list[list[Samples]]:
    """Runs every test on every runner, in turns within each repetition.

    A disturbance of the machine then meets all of them, and a drift cancels in the ratios. Each
    repetition begins with another runner.

    Returns:
        for each test the samples of each runner, in the order given.
    """
    source = random.Random(0)
    out = []
    for test in tests:
        for runner in runners:
            fill(runner, test.depth, source)
            if warmup:
                progress(f"{test.name}: {runner.name}: warm-up")
                run_once(runner, Test(test.n_prompt, min(test.n_gen, 1)), source)
        row = [Samples(test, r.name) for r in runners]
        for i in range(repetitions):
            for j in range(len(runners)):
                at = (i + j) % len(runners)
                progress(f"{test.name}: {runners[at].name}: {i + 1}/{repetitions}")
                runners[at].truncate(test.depth)
                row[at].seconds.append(run_once(runners[at], test, source))
        out.append(row)
    return out


# What takes the time, by the kinds of nodes of sardine_gguf._native.Session.profile().
_PARTS = {
    "CUSTOM tiles": "deltas",
    "CUSTOM ffn_gate": "deltas",
    "CUSTOM ffn_up": "deltas",
    "CUSTOM ffn_out": "deltas",
    "CUSTOM routes": "router",
    "MUL_MAT ffn_gate_inp": "router",
    "MUL_MAT ffn_gate": "ffn",
    "MUL_MAT ffn_up": "ffn",
    "MUL_MAT ffn_down": "ffn",
    "MUL_MAT output": "output",
    "MUL_MAT token_embd": "output",
    "MUL_MAT attn_q": "attention products",
    "MUL_MAT attn_k": "attention products",
    "MUL_MAT attn_v": "attention products",
    "MUL_MAT attn_output": "attention products",
    "FLASH_ATTN_EXT": "attention",
    "CUSTOM attention": "attention",
    "CUSTOM": "attention",
    "CONCAT": "attention",
}


def profile(runner: SardineRunner, test: Test) -> dict[str, float]:
    """Shares of the time by part, in a run that is not timed otherwise; they sum to 1.

    gain's product is among "deltas".
    """
    source = random.Random(0)
    fill(runner, test.depth, source)
    runner.model.session.set_profile(True)
    try:
        run_once(runner, test, source)
        found = runner.model.session.profile()
    finally:
        runner.model.session.set_profile(False)
    shares: dict[str, float] = {}
    for kind, ns in found.items():
        part = _PARTS.get(kind, "rest")
        shares[part] = shares.get(part, 0.0) + ns / sum(found.values())
    return shares


def decode_bytes(model: Sardine, test: Test) -> float:
    """Bytes that a token of a generation must read, the mean over a test's tokens.

    Weights, cached keys and values; in sparse the positions and the values of the token's experts.
    """
    h, e = model.model.hparams, model.model.experts
    mode = model.delta_mode
    has_shared = model.metadata.get("sardine.compensation") == "extracted"
    total = 0.0
    for file in (model.model.file, model.model.adapter):
        tensors = file.tensors if file is not None else []
        for t in tensors:
            part = 1.0
            if t.name == "token_embd.weight" and any(o.name == "output.weight" for o in tensors):
                part = 1 / t.shape[-1]
            elif t.name.endswith("_delta.val"):
                part = e["expert_used_count"] / t.shape[-1] if mode == "sparse" else 0
            elif t.name.endswith(("_delta.row_ptr", "_delta.col")):
                part = float(mode == "sparse" or has_shared)
            elif t.name.endswith(("_delta.scale", "ffn_delta.mean", "ffn_gate_inp.weight")):
                part = float(mode != "off")
            total += t.nbytes * part
    value = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}[model.kv_type]
    rows = test.depth + test.n_prompt + test.n_gen / 2
    return float(total + 2 * h["n_layer"] * h["head_dim"] * h["n_head_kv"] * value * rows)


def memory() -> dict[str, float]:
    """Bytes of this process: resident now and at most, and what of it is no file's page."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmHWM", "VmRSS", "RssAnon"):
            fields[key] = float(value.split()[0]) * 1024
    return {
        "peak": fields.get("VmHWM", math.nan),
        "resident": fields.get("VmRSS", math.nan),
        "anonymous": fields.get("RssAnon", math.nan),
    }
