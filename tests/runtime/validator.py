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


def check_keys(g: Gguf, n_layers: int) -> tuple[int, list[int], int, bool]:
    """Checks the keys; returns E, the layers, C, and whether there is a shared part."""
    version = typed(g, "sardine.version", "u32")
    need(version in (1, 2), "sardine.version")
    compensation = b"none"
    if version == 2 or any(e.key == b"sardine.compensation" for e in g.entries):
        compensation = typed(g, "sardine.compensation", "str")
    allowed = (b"none", b"residual", b"extracted")[: version + 1]
    need(compensation in allowed, "sardine.compensation")
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
    return n_experts, layers, block_columns, compensation == b"extracted"


def array(t: Tensor | None, name: str, kind: int, ne: list[int], dtype: str) -> Any:
    """A tensor's data; it must be there with that type and shape."""
    if t is None:
        raise Broken(name)
    need(t.type == kind and t.ne == ne, name)
    return np.frombuffer(t.data, dtype)[: int(np.prod(ne))]


def shape_is(t: Tensor, n: int, count: int) -> bool:
    """Whether a tensor is [n, count]; trailing ones may be left out."""
    return [*t.ne, 1, 1, 1][:4] == [n, count, 1, 1]


def check_values(t: Tensor | None, name: str, n: int, count: int) -> None:
    """Checks `count` arrays of n values: type, shape, all finite."""
    if t is None:
        raise Broken(name)
    need(t.type in (F32, F16, Q8_0), name)
    if t.type == Q8_0:
        need(shape_is(t, -(-n // 32) * 32, count), name)
        block = np.dtype([("d", "<f2"), ("q", "i1", 32)])
        values = np.frombuffer(t.data, block, count=-(-n // 32) * count)["d"]
    else:
        need(shape_is(t, n, count), name)
        values = np.frombuffer(t.data, "<f4" if t.type == F32 else "<f2")[: n * count]
    need(np.isfinite(values).all(), name)


def check_scale(t: Tensor | None, name: str, count: int) -> None:
    """Checks `count` positive powers of two."""
    scale = array(t, name, F32, [count], "<f4")
    need((scale > 0).all() and np.isfinite(scale).all(), name)
    need((np.frexp(scale)[0] == 0.5).all(), name)


def check_matrix(
    tensors: dict[str, Tensor],
    prefix: str,
    n_rows: int,
    n_cols: int,
    n_experts: int,
    width: int,
    shared: bool,
) -> None:
    """Checks the tensors of a matrix, or that none is there."""
    names = ["row_ptr", "col", "val", "scale", "shared", "shared_scale"]
    parts = {p: tensors.get(f"{prefix}.{p}") for p in names}
    for p in names[4:]:
        need(shared or parts[p] is None, f"{prefix}.{p}")
    if not any(parts.values()):
        return
    n_blocks = -(-n_cols // width)
    rows = array(parts["row_ptr"], f"{prefix}.row_ptr", I32, [n_blocks * n_rows + 1], "<i4")
    if parts["col"] is None:
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
    check_values(parts["val"], f"{prefix}.val", n, n_experts)
    check_scale(parts["scale"], f"{prefix}.scale", n_experts)
    if shared:
        check_values(parts["shared"], f"{prefix}.shared", n, 1)
        check_scale(parts["shared_scale"], f"{prefix}.shared_scale", 1)


def check_sardine(g: Gguf) -> None:
    """Raises Broken if the sardine part breaks a rule."""
    arch = typed(g, "general.architecture", "str").decode()
    n_layers = typed(g, f"{arch}.block_count", "u32")
    hidden = typed(g, f"{arch}.embedding_length", "u32")
    inner = typed(g, f"{arch}.feed_forward_length", "u32")
    n_experts, layers, width, shared = check_keys(g, n_layers)
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
            check_matrix(tensors, f"blk.{i}.ffn_{matrix}_delta", *shape, n_experts, width, shared)
