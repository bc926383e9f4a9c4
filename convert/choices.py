"""The options of convert() that need more than a look: checked against each other and the inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import schema
from .options import OptionError, Quantization, QuantOptions, quantization

# Each raises OptionError for what cannot be meant.


def thread_count(n_threads: int | None) -> int:
    """Threads to use: one for each CPU unless told otherwise."""
    if n_threads is None:
        return len(os.sched_getaffinity(0))
    if type(n_threads) is not int or not 1 <= n_threads <= 1024:
        raise OptionError(f"threads {n_threads!r}: expected 1 to 1024")
    return n_threads


def folder_quantization(
    base: Path, outtype: str | None, options: QuantOptions
) -> Quantization | None:
    """How a folder is quantized; None for a GGUF base."""
    base.stat()
    if base.is_dir():
        return quantization((outtype or schema.DEFAULT_OUT_TYPE).lower(), **options)
    refuse_base_options(
        outtype,
        options,
        f"the base {base} is a GGUF file, whose tensors are copied as they are; leave the option "
        "out, or give a model folder",
    )
    return None


def refuse_base_options(outtype: str | None, options: QuantOptions, why: str) -> None:
    """For outputs whose base is not quantized here."""
    for name, value in {"outtype": outtype, **options}.items():
        if not (value is None or value is False or value == () or value == []):
            raise OptionError(f"{name.replace('_', ' ')} {value}: {why}")


def check_verify(verify: bool, dry_run: bool) -> None:
    """There must be something to verify."""
    if verify and dry_run:
        raise OptionError("verify: a dry run writes nothing to verify; leave one of them out")


def choose_delta_type(delta_type: str | None, how: Quantization | None) -> str:
    """Type of the experts' values."""
    is_f32 = how is not None and how.out_type == "f32"
    deltas = (delta_type or ("f32" if is_f32 else "q8_0")).lower()
    if deltas not in schema.DELTA_TYPES:
        raise OptionError(f"delta type {delta_type!r}: expected {', '.join(schema.DELTA_TYPES)}")
    return deltas


def choose_compensation(method: str | None, out_type: str | None) -> str:
    """How the deltas make up for the base's quantization."""
    quantized = out_type is not None and out_type not in schema.PLAIN_TYPES
    if method is None:
        return schema.DEFAULT_COMPENSATION if quantized else "none"
    if method not in schema.COMPENSATIONS:
        expected = ", ".join(schema.COMPENSATIONS)
        raise OptionError(f"compensation {method!r}: expected {expected}")
    if method != "none" and not quantized:
        raise OptionError(
            f"compensation {method}: the base is not quantized here, so there is no error to "
            "compensate; leave the option out, or give a model folder and a quantized outtype"
        )
    return method


def choose_names(names: Sequence[str] | None, n_experts: int) -> list[str]:
    """The experts' names, the published ones unless told otherwise."""
    if names is None:
        known = schema.EXPERT_NAMES[:n_experts]
        return [*known, *(f"expert_{e}" for e in range(len(known), n_experts))]
    names = [name.strip() for name in names]
    if len(names) != n_experts:
        raise OptionError(f"{len(names)} expert names: the checkpoint has {n_experts} experts")
    if len(set(names)) != len(names) or not all(name and name.isprintable() for name in names):
        raise OptionError("expert names: expected unique, printable names that are not empty")
    return names
