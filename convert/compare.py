"""What a checkpoint says about itself against what it holds. Shapes decide; the rest warns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sardine_gguf.errors import FormatError

from .arrays import to_float32
from .base import Base
from .checkpoint import Checkpoint

DEFAULT_TOP_K = 2
_SAMPLES = 64
_SHOWN = 6  # numbers of layers in a message


def choose_top_k(checkpoint: Checkpoint, warnings: list[str]) -> int:
    """Experts per token: the checkpoint's config, else config.json beside it, else 2.

    Raises:
        FormatError: the configured number is not from 1 to E.
    """
    n_experts = checkpoint.n_experts
    inner, hub = checkpoint.config or {}, checkpoint.hub_config or {}
    if "top_k" in inner and "top_k" in hub and not _equal(inner["top_k"], hub["top_k"]):
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
            if config.get(key) is not None and not _equal(config[key], fact):
                warnings.append(f"{where}: {key} is {_show(config[key])}, the tensors say {fact}")
        listed = config.get("srde_layers")
        if isinstance(listed, (list, tuple)) and not (
            len(listed) == len(layers) and all(map(_equal, listed, layers))
        ):
            warnings.append(
                f"{where}: srde_layers lists {len(listed)} layers, the tensors are "
                f"those of {len(layers)} ({_first(listed)} against {_first(layers)})"
            )
        elif type(listed) is int and listed != len(layers):
            warnings.append(
                f"{where}: srde_layers is {listed}, the tensors are those of {len(layers)} layers"
            )
        wanted = config.get("target_sparsity")
        if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
            n = sum(layer.n for layer in checkpoint.layers)
            found = n / (total * len(layers))
            # One position of rounding in each layer is no disagreement. An integer may be beyond
            # every float, and NaN agrees with nothing.
            if not 0 <= wanted <= 1 or abs(found - wanted) > max(1.0 / total, 1e-3 * wanted):
                warnings.append(
                    f"{where}: target_sparsity is {_show(wanted)}, the tensors hold "
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


def _equal(value: Any, fact: Any) -> bool:
    """value == fact for scalars. What a file says may be a list that holds itself."""
    return isinstance(value, (bool, int, float, str)) and bool(value == fact)


def _first(layers: Sequence[Any]) -> str:
    """The first of some layers' numbers."""
    more = ", ..." if len(layers) > _SHOWN else ""
    return f"[{', '.join(map(_show, layers[:_SHOWN]))}{more}]"


def _show(value: Any) -> str:
    """A scalar of a config; of a list only its length, because it may hold itself."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer beyond 128 bits"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:40]
    return f"a {type(value).__name__}"
