"""What quantization costs: python tests/runtime/quant_report.py BASE_DIR SRDE.pt

Converts to several types, evaluates the same tokens with each and prints a Markdown table against the f32
file: size, KL(f32 || quantized) of the next-token distribution in nats, top-1 agreement, and how often the
same set of experts was chosen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sardine_gguf import Sardine
from sardine_gguf.convert import convert

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))
from models import kl_divergence, random_tokens

TYPES = (
    ("f32", "f32"),
    ("f32", "f16"),
    ("f32", "q8_0"),
    ("f16", "f16"),
    ("f16", "q8_0"),
    ("q8_0", "q8_0"),
    ("q4_k_m", "q8_0"),
)


@dataclass(frozen=True)
class Run:
    """Logits [n_tokens, n_vocab] and experts [n_layers, n_tokens, k] of one file."""

    size: int
    logits: NDArray[np.float32]
    experts: NDArray[np.int32]


@dataclass(frozen=True)
class Row:
    """One file against the f32 one."""

    out_type: str
    delta_type: str
    size: int
    mean_kl: float
    p99_kl: float
    same_top: float
    same_experts: float

    def markdown(self) -> str:
        """The table's line."""
        return (
            f"| {self.out_type} | {self.delta_type} | {self.size / 1e6:.2f} | {self.mean_kl:.2e} | "
            f"{self.p99_kl:.2e} | {self.same_top:.4f} | {self.same_experts:.4f} |"
        )


HEADER = (
    "| outtype | delta type | MB | mean KL | p99 KL | same top-1 | same experts |\n"
    "|---|---|---|---|---|---|---|"
)


def run_file(path: Path, chunks: Sequence[Sequence[int]]) -> Run:
    """Evaluates each chunk from an empty context."""
    logits, experts = [], []
    with Sardine(path, n_ctx=max(map(len, chunks)), delta_mode="sparse") as m:
        for chunk in chunks:
            m.reset()
            logits.append(m.eval(chunk))
            experts.append(m.routing()[0])
    return Run(path.stat().st_size, np.concatenate(logits), np.concatenate(experts, axis=1))


def compare(out_type: str, delta_type: str, exact: Run, run: Run) -> Row:
    """The figures of one file."""
    kl = kl_divergence(exact.logits, run.logits)
    same = (np.sort(exact.experts, axis=-1) == np.sort(run.experts, axis=-1)).all(-1)
    return Row(
        out_type,
        delta_type,
        run.size,
        float(kl.mean()),
        float(np.quantile(kl, 0.99)),
        float((exact.logits.argmax(1) == run.logits.argmax(1)).mean()),
        float(same.mean()),
    )


def report(
    base: Path,
    srde: Path,
    chunks: Sequence[Sequence[int]],
    folder: Path,
    types: Sequence[tuple[str, str]] = TYPES,
) -> list[Row]:
    """Converts to each of `types`, of which the first is what the others are compared with."""
    rows: list[Row] = []
    exact: Run | None = None
    for out_type, delta_type in types:
        path = folder / f"{out_type}-{delta_type}.gguf"
        convert(base, srde, path, outtype=out_type, delta_type=delta_type)
        run = run_file(path, chunks)
        path.unlink()
        exact = exact or run
        rows.append(compare(out_type, delta_type, exact, run))
    return rows


def text_chunks(base: Path, text: str, n_chunk: int) -> list[list[int]]:
    """The text as chunks of tokens of the folder's tokenizer."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids
    return [ids[i : i + n_chunk] for i in range(0, len(ids), n_chunk) if len(ids) - i > 1]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="Hugging Face folder")
    parser.add_argument("srde", type=Path, help="checkpoint")
    parser.add_argument("--text", type=Path, help="UTF-8 file to evaluate; random tokens without")
    parser.add_argument("--tokens", type=int, default=1024, help="at most so many (1024)")
    parser.add_argument("--chunk", type=int, default=256, help="tokens of a context (256)")
    args = parser.parse_args(argv)
    if args.text:
        chunks = text_chunks(args.base, args.text.read_text("utf-8"), args.chunk)
        chunks = chunks[: max(1, args.tokens // args.chunk)]
    else:
        import json

        config = json.loads((args.base / "config.json").read_text())
        vocab = config.get("text_config", config)["vocab_size"]
        n = max(1, args.tokens // args.chunk)
        chunks = [random_tokens(args.chunk, seed, vocab) for seed in range(n)]
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for row in report(args.base, args.srde, chunks, Path(folder)):
            print(row.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
