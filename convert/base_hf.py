"""A base model from a folder in Hugging Face's or in Mistral's own format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import schema
from .arrays import F32Array
from .base import Base, check_packable
from .chat_template import template_files
from .gguf_file import Part
from .hf_config import HfConfig, read_config
from .hf_general import general_metadata
from .hf_tensors import BaseTensor, BaseTensorPart, text_tensors
from .mistral_params import read_params
from .mixture import ModelShape, Unquantized, assign_types, unused_options
from .options import Quantization
from .safetensors_file import StoredTensor, open_folder
from .schema import MIN_ALIGNMENT
from .tokenizer import tokenizer_metadata

_COMPANIONS = (
    "config.json",
    "params.json",
    "generation_config.json",
    "tokenizer.json",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
    "model.safetensors.index.json",
    "consolidated.safetensors.index.json",
)
_CONFIGS = ("config.json", "params.json")


def is_native(folder: Path) -> bool:
    """True for Mistral's own format: params.json is there, and nothing to read in the other one."""

    def stored(stem: str) -> bool:
        return any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))

    other = stored("model") or ((folder / "config.json").exists() and not stored("consolidated"))
    return (folder / "params.json").exists() and not other


def read_folder(folder: Path, quant: Quantization, n_threads: int) -> Base:
    """Reads a folder's configs and tensor headers.

    Args:
        folder: in Hugging Face's format (config.json and model*.safetensors) or, if it has no
            tensors in that format, in Mistral's own (params.json and consolidated*.safetensors);
            usually with a tokenizer.

    Raises:
        FormatError: see read_config, read_params, open_folder, text_tensors, tokenizer_metadata,
            assign_types.
        OptionError: see assign_types.
        OSError: a file cannot be read.
    """
    warnings: list[str] = []
    native = is_native(folder)
    if not native and not (folder / "config.json").exists():
        raise _no_model(folder)
    config = read_params(folder, warnings) if native else read_config(folder)
    tensors, skipped = text_tensors(config, open_folder(folder, config.naming.stem), folder)
    n_parameters = sum(math.prod(t.stored.shape) for t in tensors)
    general = general_metadata(folder, config.arch, quant.out_type, n_parameters, warnings)
    metadata = {key: _readable(entry) for key, entry in general.items()}
    metadata.update(config.metadata())
    metadata.update(tokenizer_metadata(folder, config.arch, config.vocab, native, warnings))
    if quant.imatrix is not None:
        metadata.update(quant.imatrix.metadata())
    check_packable(metadata, folder)
    parts = _parts(quant, config, tensors, n_threads, warnings)
    by_name = {t.name: t for t in tensors}

    def sample(layer: int, matrix: str, where: Sequence[int]) -> F32Array:
        source = by_name[f"blk.{layer}.ffn_{matrix}.weight"].source
        return source.at(np.asarray(where, np.int64))

    inputs = sorted({t.stored.file for t in tensors})
    inputs += [folder / name for name in _COMPANIONS if (folder / name).exists()]
    inputs += template_files(folder)
    if quant.imatrix is not None:
        inputs.append(Path(quant.imatrix.name))
    return Base(
        metadata=metadata,
        parts=parts,
        hidden=config.hidden,
        inner=config.inner,
        layers=config.layers,
        alignment=MIN_ALIGNMENT,
        inputs=inputs,
        out_type=quant.out_type,
        warnings=warnings,
        sample=sample,
        notes=[
            f"left out {count} tensors of {part}: only the text model is converted"
            for part, count in sorted(skipped.items())
        ],
    )


def _parts(
    quant: Quantization,
    config: HfConfig,
    tensors: list[BaseTensor],
    n_threads: int,
    warnings: list[str],
) -> list[Part]:
    shape = ModelShape(config.arch, config.layers, config.heads, config.heads_kv)
    plain = [Unquantized(t.name, t.ne, _left_alone(t.stored)) for t in tensors]
    types = assign_types(quant, shape, plain)
    warnings += unused_options(quant, plain, types)
    return [
        BaseTensorPart(
            tensor,
            chosen,
            n_threads,
            quant.imatrix.importance(tensor.name, tensor.ne[0]) if quant.imatrix else None,
        )
        for tensor, chosen in zip(tensors, types, strict=True)
    ]


def _readable(entry: tuple[str, Any]) -> tuple[str, Any]:
    """A text for people, which may be a folder's name in another encoding, as Unicode."""
    kind, value = entry
    return (kind, value.encode("utf-8", "replace").decode() if kind == "str" else value)


def _left_alone(stored: StoredTensor) -> schema.GgmlType:
    """The type that holds a tensor's stored values, F64 apart."""
    name = stored.dtype.name if stored.dtype is not None else ""
    return schema.WEIGHT_TYPES[name if name in ("f16", "bf16") else "f32"]


def _no_model(folder: Path) -> FileNotFoundError:
    """params.json alone does not count where there is model.safetensors."""
    names = [name for name in _CONFIGS if not (folder / name).exists()]
    inside = [f.parent for name in names for f in sorted(folder.glob(f"*/{name}"))]
    hint = f"; did you mean {inside[0]}?" if inside else ""
    return FileNotFoundError(f"{folder}: no {' or '.join(names)}, expected a model folder{hint}")
