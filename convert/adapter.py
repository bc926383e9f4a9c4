"""The metadata of an adapter file: whose experts it holds, and which base they fit (docs/format.md)."""

from __future__ import annotations

import zlib
from pathlib import Path

from sardine_gguf.errors import FormatError

from . import schema
from .base import Base
from .gguf_file import Metadata, Part

_INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")


def adapter_metadata(base: Base, file: Path) -> Metadata:
    """Everything but the keys that a merged file has too.

    Args:
        file: the base's, for messages.

    Raises:
        FormatError: the base lacks a key or tensor that its shape is known by.
        OSError: its norms cannot be read.
    """
    kind, arch = base.metadata["general.architecture"]
    out: Metadata = {
        "general.architecture": (kind, arch),
        "general.type": ("str", "adapter"),
        "adapter.type": ("str", schema.ADAPTER_TYPE),
    }
    name = base.metadata.get("general.name")
    if name is not None and name[0] == "str":
        out["general.name"] = name
        out["general.base_model.count"] = ("u32", 1)
        out["general.base_model.0.name"] = name
    for key, value in base_shape(base, str(arch), file).items():
        out[schema.KEY_BASE_PREFIX + key] = ("u32", value)
    out[schema.KEY_BASE_NORMS] = ("u32", norm_checksum(base, file))
    return out


def base_shape(base: Base, arch: str, file: Path) -> dict[str, int]:
    """The numbers that a base must share with the one that the experts were trained on."""

    def count(key: str, default: int | None = None) -> int:
        full = f"{arch}.{key}"
        if full not in base.metadata and default is not None:
            return default
        kind, value = base.metadata.get(full, ("nothing", None))
        if kind not in _INTEGERS or not 1 <= value < 2**31:
            raise _bad(
                file, full, f"expected an integer from 1 to 2^31 - 1, found {kind} {value!r}"
            )
        return int(value)

    heads = count("attention.head_count")
    return {
        "block_count": base.layers,
        "embedding_length": base.hidden,
        "feed_forward_length": base.inner,
        "attention.head_count": heads,
        "attention.head_count_kv": count("attention.head_count_kv", heads),
        "attention.key_length": count("attention.key_length", base.hidden // heads),
        "vocab_size": _tensor(base, "token_embd.weight", 2, file)[1],
    }


def norm_checksum(base: Base, file: Path) -> int:
    """CRC-32 of the norms' bytes as F32: attn_norm and ffn_norm layer by layer, then output_norm.

    Norms are F32 in every quantization of a model, so it is the same for all of them.
    """
    names = [f"blk.{i}.{n}_norm.weight" for i in range(base.layers) for n in ("attn", "ffn")]
    names.append("output_norm.weight")
    parts: dict[str, Part] = {s.name: part for part in base.parts for s in part.specs}
    crc = 0
    for name in names:
        _tensor(base, name, 1, file)
        for made, piece in parts[name].produce():
            if made == name:
                crc = zlib.crc32(piece, crc)
    return crc


def _tensor(base: Base, name: str, dims: int, file: Path) -> tuple[int, ...]:
    for part in base.parts:
        for spec in part.specs:
            if spec.name == name:
                if len(spec.ne) != dims or (dims == 1 and spec.type != schema.F32.id):
                    kind = "F32 vector" if dims == 1 else "matrix"
                    raise _bad(file, name, f"expected a {kind}, found the shape {list(spec.ne)}")
                return spec.ne
    raise _bad(file, name, "the base has no such tensor")


def _bad(file: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{file}: {field}: {message}", file=str(file), field=field)
