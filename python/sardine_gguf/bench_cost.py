"""Bytes and multiply-adds that the parts of an evaluation need at least, whatever kernels do it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sardine_gguf.model import Sardine

KV_VALUE_BYTES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}


@dataclass
class Cost:
    """Of one part.

    Attributes:
        nbytes: read from memory at least once a batch.
        products: multiply-adds with a weight matrix, by ggml's number of the matrix's type.
        floats: multiply-adds in float32.
    """

    nbytes: float = 0.0
    products: dict[int, float] = field(default_factory=dict)
    floats: float = 0.0

    @property
    def multiply_adds(self) -> float:
        """All of them; a multiply-add is two floating-point operations."""
        return sum(self.products.values()) + self.floats


_PART_OF = (
    (re.compile(r"ffn_gate_inp\.weight$"), "router"),
    (re.compile(r"_delta\."), "deltas"),
    (re.compile(r"ffn_(gate|up|down)\.weight$"), "ffn"),
    (re.compile(r"attn_(q|k|v|output)\.weight$"), "attention products"),
    (re.compile(r"^output\.weight$"), "output"),
)


def part_of(name: str, tied: bool) -> str:
    """The part that reads a tensor, by the names that bench_measure.profile has.

    Args:
        tied: the embedding serves as the output matrix.
    """
    if tied and name == "token_embd.weight":
        return "output"
    return next((part for pattern, part in _PART_OF if pattern.search(name)), "rest")


def batches_of(n_tokens: int, n_batch: int, past: float) -> list[tuple[int, float]]:
    """(tokens of a batch, tokens before it) of an evaluation."""
    return [(min(n_batch, n_tokens - at), past + at) for at in range(0, n_tokens, n_batch)]


def costs(model: Sardine, n_tokens: int, past: float = 0.0) -> dict[str, Cost]:
    """What evaluating n_tokens in batches costs at least, by part; only the last token's logits.

    A batch reads every weight once, of the embedding a row a token, and the keys and values before it. In
    sparse it reads the positions once, and the values of the experts that its tokens are expected to have
    if all are as likely. Norms, activations and the rows of keys and values that are written count nothing.

    Args:
        past: tokens before the first; a mean over several evaluations need not be whole.
    """
    h, e = model.model.hparams, model.model.experts
    mode, k, n_experts = model.delta_mode, e["expert_used_count"], e["expert_count"]
    has_shared = model.metadata.get("sardine.compensation") == "extracted"
    files = [f for f in (model.model.file, model.model.adapter) if f is not None]
    tied = not any(t.name == "output.weight" for f in files for t in f.tensors)
    batches = batches_of(n_tokens, model.session.n_batch, past)
    out: dict[str, Cost] = {}
    for t in (t for f in files for t in f.tensors):
        part = part_of(t.name, tied)
        cost = out.setdefault(part, Cost())
        used = mode == "sparse"
        last_layer = t.name.startswith(f"blk.{h['n_layer'] - 1}.ffn_")  # of the last token alone
        for n_batch, _ in batches:
            size = 1 if last_layer and part != "router" else n_batch
            share = 1.0
            if part == "rest" and t.name == "token_embd.weight":
                share = min(1.0, size / t.shape[-1])
            elif t.name.endswith("_delta.val"):
                share = 1 - (1 - k / n_experts) ** size if used else 0.0
            elif t.name.endswith(("_delta.row_ptr", "_delta.col")):
                share = float(used or has_shared)
                if t.name.endswith(".col"):  # values are padded to whole blocks
                    cost.floats += size * t.shape[0] * (k * used + has_shared)
            elif t.name.endswith(("_delta.scale", "ffn_delta.mean")):
                share = float(mode != "off")
            elif part == "router":
                share = float(mode != "off")
                cost.floats += size * t.shape[0] * t.shape[1] * share
            elif part in ("ffn", "attention products", "output"):
                rows = 1 if part == "output" else size
                cost.products[t.type] = (
                    cost.products.get(t.type, 0.0) + rows * t.shape[0] * t.shape[1]
                )
            cost.nbytes += t.nbytes * share
    out["attention"] = Cost(
        nbytes=sum(
            2 * h["n_layer"] * h["head_dim"] * h["n_head_kv"] * KV_VALUE_BYTES[model.kv_type]
            * (before + size) for size, before in batches
        ),
        floats=sum(
            2 * h["n_layer"] * h["head_dim"] * h["n_head"] * (size * before + size * (size + 1) / 2)
            for size, before in batches
        ),
    )  # fmt: skip
    return {part: c for part, c in out.items() if c.nbytes or c.multiply_adds}
