"""A plain, slow reader of SaRDinE files, written from docs/format.md and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np


@dataclass
class Layer:
    """positions: flat, in the layer's numbering; values float64 [E, n] in the same order.

    shared: float64 [n], 0 in files without a shared part.
    """

    router: np.ndarray
    mean: np.ndarray
    positions: np.ndarray
    values: np.ndarray
    scales: dict[str, np.ndarray]
    shared: np.ndarray


def keys(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file."""
    reader = gguf.GGUFReader(path)
    return {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, Any]:
    """gguf's tensors by name."""
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def layers(path: Path) -> dict[int, Layer]:
    """The augmented layers of a file, with every rule of the format asserted."""
    kv, held = keys(path), tensors(path)
    arch = kv["general.architecture"]
    hidden, inner = kv[f"{arch}.embedding_length"], kv[f"{arch}.feed_forward_length"]
    n_experts, width = kv["sardine.expert_count"], kv["sardine.block_columns"]
    has_shared = kv.get("sardine.compensation") == "extracted"
    assert kv["sardine.version"] == (2 if has_shared else 1)
    out = {}
    for i in kv["sardine.layers"]:
        router = held.pop(f"blk.{i}.ffn_gate_inp.weight")
        assert router.tensor_type.name == "F32"
        assert list(router.shape) == [hidden, n_experts]
        mean = held.pop(f"blk.{i}.ffn_delta.mean")
        assert list(mean.shape) == [n_experts]
        positions, values, scales, shared = [], [], {}, []
        for m, (name, n_rows, n_cols) in enumerate(
            (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner))
        ):
            prefix = f"blk.{i}.ffn_{name}_delta."
            parts = {p: held.pop(prefix + p, None) for p in ("row_ptr", "col", "val", "scale")}
            if all(p is None for p in parts.values()):
                continue
            row_ptr, col, scale = (parts[p].data for p in ("row_ptr", "col", "scale"))
            assert parts["row_ptr"].tensor_type.name == "I32"
            assert parts["col"].tensor_type.name == "I16"
            col = col.view(np.uint16)
            n, n_blocks = len(col), -(-n_cols // width)
            assert n > 0
            assert len(row_ptr) == n_blocks * n_rows + 1
            assert row_ptr[0] == 0
            assert row_ptr[-1] == n
            assert (np.diff(row_ptr) >= 0).all()
            kind = parts["val"].tensor_type
            val = gguf.dequantize(parts["val"].data, kind).reshape(n_experts, -1)
            assert val.shape[1] == (-(-n // 32) * 32 if kind.name == "Q8_0" else n)
            assert not val[:, n:].any()
            assert (np.frexp(scale)[0] == 0.5).all()
            if kind.name == "F32":
                assert (scale == 1).all()
            for b in range(n_blocks):
                block_width = min(width, n_cols - b * width)
                for r in range(n_rows):
                    lo, hi = row_ptr[b * n_rows + r], row_ptr[b * n_rows + r + 1]
                    inside = col[lo:hi].astype(int)
                    assert (np.diff(inside) > 0).all()
                    assert (inside < block_width).all()
                    for c in inside:
                        positions.append(m * hidden * inner + r * n_cols + b * width + c)
            values.append(val[:, :n].astype(np.float64) * scale[:, None])
            scales[name] = scale
            shared.append(np.zeros(n))
            if has_shared:
                part = held.pop(prefix + "shared")
                common = gguf.dequantize(part.data, part.tensor_type).reshape(-1)
                assert not common[n:].any()
                (factor,) = held.pop(prefix + "shared_scale").data
                assert np.frexp(factor)[0] == 0.5
                shared[-1] = common[:n].astype(np.float64) * factor
        out[i] = Layer(
            router.data,
            mean.data,
            np.array(positions, np.int64),
            np.concatenate(values, axis=1) if values else np.zeros((n_experts, 0)),
            scales,
            np.concatenate(shared) if shared else np.zeros(0),
        )
    assert not [n for n in held if "_delta" in n or "ffn_gate_inp" in n]
    return out
