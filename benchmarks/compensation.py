"""What the ways of error compensation buy, as the tables of docs/compensation.md.

    python benchmarks/compensation.py matrices                    # squared error of one matrix
    python benchmarks/compensation.py model BASE_DIR SRDE.pt      # KL divergence of a model

`matrices` quantizes heavy-tailed random matrices whose largest values are the positions. `model`
converts with each method and compares every mode's next-token distribution with the unquantized
model's in the same mode, on held-out dialogues of the bundled example's generators. For a density below the
checkpoint's own, positions are cut to the largest (the checkpoint stores those first).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from sardine_gguf import Sardine, _native
from sardine_gguf.convert import convert
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/convert"))
sys.path.insert(0, str(ROOT / "tests/runtime"))
sys.path.insert(0, str(ROOT))
from models import kl_divergence

from examples.train.dialogues import Dialogue, encode
from examples.train.domains import DOMAINS

METHODS = (
    ("none", "f16"),
    ("residual", "f16"),
    ("extracted", "q8_0"),
    ("extracted", "f16"),
    ("extracted", "f32"),
)
MODES = ("sparse", "gain", "off")


def heavy_tailed(kind: str, rows: int, cols: int) -> NDArray[np.float32]:
    """A random matrix with a standard deviation of about 0.02."""
    rng = np.random.default_rng(1)
    if kind == "normal":
        w = rng.standard_normal((rows, cols))
    else:
        w = rng.standard_t(float(kind[1:]), (rows, cols))
    return (0.02 * w / w.std()).astype(np.float32)


def through(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Values [n] as a value type keeps them."""
    if kind == "f16":
        return values.astype(np.float16).astype(np.float32)
    if kind == "q8_0":
        rows = np.zeros((1, -(-len(values) // 32) * 32), np.float32)
        rows[0, : len(values)] = values
        data = _native.quantize(rows, "q8_0", 1)
        return _native.dequantize(data, "q8_0", rows.shape[1], 1)[0, : len(values)]
    return values


def matrix_errors(
    w: NDArray[np.float32], qtype: str, density: float
) -> Iterator[tuple[str, str, float]]:
    """(method, type of the carried values, mean squared error over plain quantization's)."""
    flat = w.reshape(-1)
    n = int(density * flat.size)
    at = np.sort(np.argpartition(-np.abs(flat), n)[:n])

    def quantized(m: NDArray[np.float32]) -> NDArray[np.float32]:
        return _native.dequantize(_native.quantize(m, qtype, 1), qtype, m.shape[1], 1)

    plain = quantized(w)
    base = float(np.mean((plain - w) ** 2))
    for kind in ("q8_0", "f16"):
        out = plain.copy()
        out.reshape(-1)[at] += through(flat[at] - out.reshape(-1)[at], kind)
        yield "residual", kind, float(np.mean((out - w) ** 2)) / base
    holed = w.copy()
    holed.reshape(-1)[at] = 0
    rest = quantized(holed)
    for kind in ("q8_0", "f16", "f32"):
        out = rest.copy()
        out.reshape(-1)[at] += through(flat[at] - out.reshape(-1)[at], kind)
        yield "extracted", kind, float(np.mean((out - w) ** 2)) / base


def matrices() -> None:
    """Prints the table of single matrices."""
    columns = list(
        dict.fromkeys(
            (m, v) for m, v, _ in matrix_errors(np.eye(256, dtype=np.float32), "q8_0", 0.01)
        )
    )
    print("| weights, type | " + " | ".join(f"{m}, {v}" for m, v in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for kind in ("normal", "t5", "t3"):
        w = heavy_tailed(kind, 1024, 4096)
        for qtype in ("q2_k", "q3_k", "q4_k", "q6_k", "q8_0"):
            low, high = (
                [f"{error:.2f}" for *_, error in matrix_errors(w, qtype, density)]
                for density in (0.01, 0.04)
            )
            cells = [f"{a} / {b}" for a, b in zip(low, high, strict=True)]
            print(f"| {kind}, {qtype} | " + " | ".join(cells) + " |", flush=True)


def held_out_tokens(base: Path, n_dialogues: int) -> list[list[int]]:
    """Held-out dialogues of all six domains, one token list each."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    rng = Random(11)
    out = []
    for i in range(n_dialogues):
        item = DOMAINS[i % len(DOMAINS)].sample(rng, held_out=True)
        out.append(encode(tokenizer, Dialogue(item.turns, [0] * len(item.turns))).ids)
    return out


def thinned(srde: Path, share: float, path: Path) -> Path:
    """The checkpoint with only the first `share` of each layer's positions, which are the largest."""
    saved = torch.load(srde, weights_only=True)
    for layer in saved["srde_layers"].values():
        n = int(len(layer["mask_selector.indices"]) * share)
        for key, tensor in layer.items():
            if key == "mask_selector.indices" or key.endswith(".importance"):
                layer[key] = tensor[:n].clone()
            elif key.endswith("vocabulary.atoms"):
                layer[key] = tensor[:, :n].clone()
    torch.save(saved, path)
    return path


@dataclass(frozen=True)
class Run:
    """One file's size, and its logits of all dialogues by mode."""

    size: int
    logits: dict[str, NDArray[np.float32]]


def run_file(path: Path, dialogues: Sequence[Sequence[int]]) -> Run:
    """Evaluates every dialogue in every mode."""
    out = {}
    for mode in MODES:
        with Sardine(path, n_ctx=512, delta_mode=mode, n_threads=1) as model:
            parts = []
            for tokens in dialogues:
                model.reset()
                parts.append(model.eval(tokens))
            out[mode] = np.concatenate(parts)
    return Run(path.stat().st_size, out)


def against(
    plain: NDArray[np.float64], found: NDArray[np.float64], dialogues: Sequence[Sequence[int]]
) -> str:
    """Change of a mean over tokens in per cent, with its standard error over the dialogues."""
    ends = np.cumsum([len(d) for d in dialogues])[:-1]
    change = np.array([part.sum() for part in np.split(found - plain, ends)])
    error = change.std(ddof=1) * np.sqrt(change.size)
    return f"{100 * change.sum() / plain.sum():+.1f} ± {100 * error / plain.sum():.1f} %"


def model(base: Path, srde: Path, out_types: Sequence[str], n_dialogues: int) -> None:
    """Prints the table of a whole model."""
    dialogues = held_out_tokens(base, n_dialogues)
    n = sum(map(len, dialogues))
    print(f"{n} tokens of {len(dialogues)} held-out dialogues\n")
    shared = [f"extracted, {kind}" for _, kind in METHODS[2:]]
    columns = ["KL sparse", "residual", *shared, "KL off", *shared]
    print("| density | outtype | deltas | MB | " + " | ".join(columns) + " |")
    print("|---" * (4 + len(columns)) + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for share, density in ((1.0, "4 %"), (0.25, "1 %")):
            checkpoint = srde if share == 1 else thinned(srde, share, folder / "thin.pt")
            exact_path = folder / "exact.gguf"
            convert(base, checkpoint, exact_path, outtype="f32", delta_type="f32", force=True)
            exact = run_file(exact_path, dialogues)
            for out_type in out_types:
                for delta_type in ("q8_0", "f16"):
                    sizes, found = [], []
                    for method, kind in METHODS:
                        path = folder / "x.gguf"
                        convert(
                            base, checkpoint, path, outtype=out_type, delta_type=delta_type,
                            compensation=method, shared_type=kind, force=True,
                        )  # fmt: skip
                        run = run_file(path, dialogues)
                        sizes.append(run.size / 1e6)
                        found.append(
                            {m: kl_divergence(exact.logits[m], run.logits[m]) for m in MODES}
                        )
                    cells = []
                    for mode, first in (("sparse", 1), ("off", 2)):
                        plain = found[0][mode]
                        cells.append(f"{plain.mean():.3g}")
                        cells += [against(plain, f[mode], dialogues) for f in found[first:]]
                    size = f"{sizes[0]:.2f} " + " ".join(f"+{s - sizes[0]:.2f}" for s in sizes[2:])
                    print(
                        f"| {density} | {out_type} | {delta_type} | {size} | "
                        + " | ".join(cells)
                        + " |",
                        flush=True,
                    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = parser.add_subparsers(dest="what", required=True)
    sub.add_parser("matrices", help="squared error of single matrices")
    whole = sub.add_parser("model", help="KL divergence of a model")
    whole.add_argument("base", type=Path, help="Hugging Face folder")
    whole.add_argument("srde", type=Path, help="checkpoint")
    whole.add_argument("--outtypes", default="q2_k,q3_k_m,q4_k_m,q8_0", help="a,b,...")
    whole.add_argument("--dialogues", type=int, default=150)
    args = parser.parse_args()
    if args.what == "matrices":
        matrices()
    else:
        model(args.base, args.srde, args.outtypes.split(","), args.dialogues)


if __name__ == "__main__":
    main()
