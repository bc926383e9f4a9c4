"""The number of layers on the GPU, as programs and the API take it."""

from __future__ import annotations

import argparse
from typing import Literal

from sardine_gguf.arguments import MAX_INT, integer

GpuLayers = int | Literal["auto", "all"]

_NAMED = {"all": -1, "auto": -2}


def native_layers(n: GpuLayers) -> int:
    """What the runtime calls it: -1 for all layers, -2 for as many as fit.

    Raises:
        TypeError, ValueError: anything else.
    """
    if isinstance(n, str):
        if n not in _NAMED:
            raise ValueError(f"n_gpu_layers is {n!r}, expected a number of layers, 'auto' or 'all'")
        return _NAMED[n]
    return integer(
        "n_gpu_layers", n, "a number of layers, -1 for all, 'all' or 'auto'", least=-1, most=MAX_INT
    )


def add_gpu_flag(p: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """llama.cpp's -ngl."""
    p.add_argument(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        dest="n_gpu_layers",
        type=parse_layers,
        default=0,
        metavar="N",
        help="layers on the GPU (0); all, or auto: what its free memory holds",
    )


def parse_layers(text: str) -> GpuLayers:
    """A value of -ngl."""
    try:
        value: GpuLayers = int(text) if text.lstrip("-").isdigit() else text  # type: ignore[assignment]
        native_layers(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of layers nor 'all' nor 'auto'"
        ) from None
    return value
