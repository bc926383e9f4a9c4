"""An independent reading of docs/format.md: does the sardine part of a parsed file keep every rule?

Written from the document, not from the runtime's source; the tests compare the verdicts.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from gguf_mutate import KINDS, Gguf, Tensor

F32, F16, Q8_0, I16, I32 = 0, 1, 8, 25, 26


class Broken(Exception):
    """A rule that does not hold; the text names the key or tensor."""


def need(holds: Any, field: str) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(field)


def typed(g: Gguf, key: str, kind: str, element: str = "") -> Any:
    """A key's value; it must be there with that type."""
    found = [e for e in g.entries if e.key == key.encode()]
    need(found, key)
    need(found[0].kind == KINDS.index(kind), key)
    if element:
        need(found[0].payload[:4] == KINDS.index(element).to_bytes(4, "little"), key)
    return found[0].value()


def check_keys(g: Gguf, n_layers: int) -> tuple[int, list[int], int]:
    """Checks the keys; returns E, the layers and C."""
    need(typed(g, "sardine.version", "u32") == 1, "sardine.version")
    n_experts = typed(g, "sardine.expert_count", "u32")
    need(1 <= n_experts <= 256, "sardine.expert_count")
    need(
        1 <= typed(g, "sardine.expert_used_count", "u32") <= n_experts, "sardine.expert_used_count"
    )
    names = typed(g, "sardine.expert_names", "arr", "str")
    need(len(names) == n_experts == len(set(names)) and all(names), "sardine.expert_names")
    need(typed(g, "sardine.delta_mode", "str") in (b"sparse", b"gain"), "sardine.delta_mode")
    layers = typed(g, "sardine.layers", "arr", "u32")
    need(layers and layers == sorted(set(layers)) and layers[-1] < n_layers, "sardine.layers")
    block_columns = typed(g, "sardine.block_columns", "u32")
    need(1 <= block_columns <= 65536, "sardine.block_columns")
    return n_experts, layers, block_columns


def array(t: Tensor | None, name: str, kind: int, ne: list[int], dtype: str) -> Any:
    """A tensor's data; it must be there with that type and shape."""
    if t is None:
        raise Broken(name)
    need(t.type == kind and t.ne == ne, name)
    return np.frombuffer(t.data, dtype)[: int(np.prod(ne))]


def check_matrix(
    tensors: dict[str, Tensor], prefix: str, n_rows: int, n_cols: int, n_experts: int, width: int
) -> None:
    """Checks the four tensors of a matrix, or that none is there."""
    parts = {p: tensors.get(f"{prefix}.{p}") for p in ("row_ptr", "col", "val", "scale")}
    if not any(parts.values()):
        return
    n_blocks = -(-n_cols // width)
    rows = array(parts["row_ptr"], f"{prefix}.row_ptr", I32, [n_blocks * n_rows + 1], "<i4")
    if parts["col"] is None or parts["val"] is None:
        raise Broken(f"{prefix}.col")
    n = parts["col"].ne[0]
    col = array(parts["col"], f"{prefix}.col", I16, [n], "<u2").astype(np.int64)
    need(
        rows[0] == 0 and rows[-1] == n and (np.diff(rows.astype(np.int64)) >= 0).all(),
        f"{prefix}.row_ptr",
    )
    for i in range(len(rows) - 1):
        block_width = min(width, n_cols - i // n_rows * width)
        mine = col[rows[i] : rows[i + 1]]
        need((np.diff(mine) > 0).all() and (mine < block_width).all(), f"{prefix}.col")
    kind = parts["val"].type
    need(kind in (F32, F16, Q8_0), f"{prefix}.val")
    if kind == Q8_0:
        need(parts["val"].ne == [-(-n // 32) * 32, n_experts], f"{prefix}.val")
        block = np.dtype([("d", "<f2"), ("q", "i1", 32)])
        values = np.frombuffer(parts["val"].data, block, count=-(-n // 32) * n_experts)["d"]
    else:
        values = array(
            parts["val"], f"{prefix}.val", kind, [n, n_experts], "<f4" if kind == F32 else "<f2"
        )
    need(np.isfinite(values).all(), f"{prefix}.val")
    scale = array(parts["scale"], f"{prefix}.scale", F32, [n_experts], "<f4")
    need((scale > 0).all() and np.isfinite(scale).all(), f"{prefix}.scale")
    need((np.frexp(scale)[0] == 0.5).all(), f"{prefix}.scale")


def check_sardine(g: Gguf) -> None:
    """Raises Broken if the sardine part breaks a rule."""
    arch = typed(g, "general.architecture", "str").decode()
    n_layers = typed(g, f"{arch}.block_count", "u32")
    hidden = typed(g, f"{arch}.embedding_length", "u32")
    inner = typed(g, f"{arch}.feed_forward_length", "u32")
    n_experts, layers, width = check_keys(g, n_layers)
    tensors = {t.name.decode(): t for t in g.tensors}
    for name in tensors:
        m = re.match(r"blk\.(\d+)\.(ffn_(gate|up|down)_delta|ffn_delta|ffn_gate_inp)\b", name)
        need(not m or int(m[1]) in layers, name)
    for i in layers:
        for name, ne in (
            ("ffn_gate_inp.weight", [hidden, n_experts]),
            ("ffn_delta.mean", [n_experts]),
        ):
            full = f"blk.{i}.{name}"
            need(np.isfinite(array(tensors.get(full), full, F32, ne, "<f4")).all(), full)
        for matrix in ("gate", "up", "down"):
            shape = (hidden, inner) if matrix == "down" else (inner, hidden)
            check_matrix(tensors, f"blk.{i}.ffn_{matrix}_delta", *shape, n_experts, width)
