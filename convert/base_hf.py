"""A base model from a Hugging Face folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .arrays import F32Array, to_float32
from .base import Base, check_packable
from .hf_config import read_config
from .hf_general import general_metadata
from .hf_tensors import BaseTensorPart, text_tensors
from .mixture import tensor_type
from .safetensors_file import open_folder
from .schema import MIN_ALIGNMENT
from .tokenizer import tokenizer_metadata


def read_folder(folder: Path, out_type: str, n_threads: int) -> Base:
    """Reads a folder's configs and tensor headers.

    Args:
        folder: holds config.json, safetensors files and usually a tokenizer.
        out_type: one of schema.OUT_TYPES.

    Raises:
        FormatError: see read_config, open_folder, text_tensors, tokenizer_metadata.
        OSError: a file cannot be read.
    """
    config = read_config(folder)
    tensors, skipped = text_tensors(config, open_folder(folder), folder)
    warnings: list[str] = []
    n_parameters = sum(math.prod(t.stored.shape) for t in tensors)
    metadata = general_metadata(folder, out_type, n_parameters)
    metadata.update(config.metadata())
    metadata.update(tokenizer_metadata(folder, config.vocab, warnings))
    check_packable(metadata, folder)
    tied = all(t.name != "output.weight" for t in tensors)
    by_name = {t.name: t for t in tensors}

    def sample(layer: int, matrix: str, where: Sequence[int]) -> F32Array:
        stored = by_name[f"blk.{layer}.ffn_{matrix}.weight"].stored
        assert stored.dtype is not None
        return to_float32(np.asarray(stored.raw().reshape(-1)[list(where)]), stored.dtype)

    inputs = sorted({t.stored.file for t in tensors})
    inputs += [
        p
        for p in (
            folder / n
            for n in (
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "chat_template.jinja",
                "README.md",
                "model.safetensors.index.json",
            )
        )
        if p.exists()
    ]
    return Base(
        metadata=metadata,
        parts=[
            BaseTensorPart(
                t, tensor_type(out_type, t.name, t.ne, t.layer, config.layers, tied), n_threads
            )
            for t in tensors
        ],
        hidden=config.hidden,
        inner=config.inner,
        layers=config.layers,
        alignment=MIN_ALIGNMENT,
        inputs=inputs,
        out_type=out_type,
        warnings=warnings,
        sample=sample,
        notes=[
            f"left out {count} tensors of {part}: only the text model is converted"
            for part, count in sorted(skipped.items())
        ],
    )
