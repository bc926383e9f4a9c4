"""Measuring tokens per second: tests as llama-bench defines them, runners in turns."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sardine_gguf.bench_cost import costs
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


Fill = Callable[[Any, int, random.Random], None]  # as fill, of the runners that it is for


def measure(
    runners: Sequence[Runner],
    tests: Iterable[Test],
    repetitions: int,
    warmup: bool = True,
    progress: Callable[[str], None] = lambda text: None,
    fill: Fill = fill,
) -> list[list[Samples]]:
    """Runs every test on every runner, in turns within each repetition.

    A disturbance of the machine then meets all of them, and a drift cancels in the ratios. Each
    repetition begins with another runner.

    Args:
        fill: makes the context of a test's depth.

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


def profile_ns(runner: SardineRunner, test: Test, fill: Fill = fill) -> dict[str, int]:
    """Nanoseconds by part of a run that is not timed otherwise. gain's product is among "deltas"."""
    source = random.Random(0)
    fill(runner, test.depth, source)
    runner.model.session.set_profile(True)
    try:
        run_once(runner, test, source)
        found = runner.model.session.profile()
    finally:
        runner.model.session.set_profile(False)
    parts: dict[str, int] = {}
    for kind, ns in found.items():
        part = _PARTS.get(kind, "rest")
        parts[part] = parts.get(part, 0) + ns
    return parts


def profile(runner: SardineRunner, test: Test) -> dict[str, float]:
    """Shares of the time by part, as profile_ns has it; they sum to 1."""
    found = profile_ns(runner, test)
    return {part: ns / sum(found.values()) for part, ns in found.items()}


def decode_bytes(model: Sardine, test: Test) -> float:
    """Bytes that a token of a generation must read, the mean over a test's tokens.

    Weights, cached keys and values; in sparse the positions and the values of the token's experts.
    """
    past = test.depth + test.n_prompt + test.n_gen / 2 - 1  # the token itself is read as well
    return sum(c.nbytes for c in costs(model, 1, past).values())


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
