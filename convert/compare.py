"""What a checkpoint says about itself against what it holds. Shapes decide; the rest warns."""

from __future__ import annotations

from typing import Any

import numpy as np
from sardine_gguf.errors import FormatError

from .arrays import to_float32
from .base import Base
from .checkpoint import Checkpoint

DEFAULT_TOP_K = 2
_SAMPLES = 64


def choose_top_k(checkpoint: Checkpoint, warnings: list[str]) -> int:
    """Experts per token: the checkpoint's config, else config.json beside it, else 2.

    Raises:
        FormatError: the configured number is not from 1 to E.
    """
    n_experts = checkpoint.n_experts
    inner, hub = checkpoint.config or {}, checkpoint.hub_config or {}
    if "top_k" in inner and "top_k" in hub and inner["top_k"] != hub["top_k"]:
        warnings.append(
            f"{checkpoint.path}: top_k is {_show(inner['top_k'])} in the checkpoint "
            f"and {_show(hub['top_k'])} in config.json; the checkpoint's is used"
        )
    for config, where in (
        (inner, str(checkpoint.path)),
        (hub, str(checkpoint.path.parent / "config.json")),
    ):
        if "top_k" in config:
            top_k = config["top_k"]
            if type(top_k) is not int or not 1 <= top_k <= n_experts:
                raise FormatError(
                    f"{where}: top_k: expected 1 to {n_experts} (the experts), "
                    f"found {_show(top_k)}",
                    file=where,
                    field="top_k",
                )
            return top_k
    top_k = min(DEFAULT_TOP_K, n_experts)
    warnings.append(f"{checkpoint.path}: no top_k in a config; {top_k} experts per token are used")
    return top_k


def compare_configs(checkpoint: Checkpoint, base: Base, warnings: list[str]) -> None:
    """Warns where a config's numbers differ from those of the tensors."""
    layers = [layer.index for layer in checkpoint.layers]
    facts = {
        "num_experts": checkpoint.n_experts,
        "num_delta_atoms": checkpoint.n_atoms,
        "hidden_size": base.hidden,
        "intermediate_size": base.inner,
        "num_layers": base.layers,
    }
    total = 3 * base.hidden * base.inner
    for config, where in (
        (checkpoint.config, checkpoint.path),
        (checkpoint.hub_config, checkpoint.path.parent / "config.json"),
    ):
        if config is None:
            continue
        for key, fact in facts.items():
            if config.get(key) is not None and config[key] != fact:
                warnings.append(f"{where}: {key} is {_show(config[key])}, the tensors say {fact}")
        listed = config.get("srde_layers")
        if isinstance(listed, (list, tuple)) and list(listed) != layers:
            warnings.append(
                f"{where}: srde_layers lists {len(listed)} layers, the tensors are "
                f"those of {len(layers)} ({_show(listed)} against {_show(layers)})"
            )
        elif type(listed) is int and listed != len(layers):
            warnings.append(
                f"{where}: srde_layers is {listed}, the tensors are those of {len(layers)} layers"
            )
        wanted = config.get("target_sparsity")
        if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
            n = sum(layer.n for layer in checkpoint.layers)
            found = n / (total * len(layers))
            # One position of rounding in each layer is no disagreement.
            if abs(found - wanted) > max(1.0 / total, 1e-3 * abs(wanted)):
                warnings.append(
                    f"{where}: target_sparsity is {wanted:g}, the tensors hold "
                    f"{found:.6g} of the parameters"
                )


def compare_base_ffn(checkpoint: Checkpoint, base: Base, warnings: list[str]) -> None:
    """Warns, once, if a frozen copy of the base's FFN differs from the base at some places."""
    if base.sample is None:
        return
    for layer in checkpoint.layers:
        for matrix, tensor in layer.base_ffn.items():
            n_rows, n_cols = tensor.shape
            where = np.linspace(0, n_rows * n_cols - 1, _SAMPLES).astype(np.int64)
            mine = to_float32(tensor.at(where // n_cols, where % n_cols), tensor.dtype)
            theirs = base.sample(layer.index, matrix, where.tolist())
            # bf16 and f16 copies of the same weights differ by their rounding.
            if not np.allclose(mine, theirs, rtol=2**-7, atol=1e-6, equal_nan=True):
                at = int(np.argmax(np.abs(mine - theirs)))
                warnings.append(
                    f"{checkpoint.path}: srde_layers.{layer.index}.base_ffn.{matrix}_proj.weight "
                    f"is not the base's: {mine[at]:.6g} against {theirs[at]:.6g} at "
                    f"{int(where[at])}; were the experts trained on another base?"
                )
                return


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        body = ", ".join(_show(v) for v in value[:6])
        return f"[{body}{', ...' if len(value) > 6 else ''}]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:40]
    return f"a {type(value).__name__}"
