"""Merges and special token ids of a tokenizer, as GGUF metadata."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
from sardine_gguf.errors import FormatError

from .chat_template import template_files
from .files import MAX_JSON_BYTES, read_json_if_there, regular_size
from .gguf_file import Metadata

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SPECIAL_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_COMPANIONS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def special_metadata(
    folder: Path, tokenizer: dict[str, Any], tokens: list[str], vocab_size: int
) -> Metadata:
    """Merges, special token ids and add_*_token."""
    # gguf opens these files without a look at what they are.
    for file in [folder / name for name in _COMPANIONS] + template_files(folder):
        if file.exists() and regular_size(file) > MAX_JSON_BYTES:
            raise _bad(file, file.name, "is too large")
    merges = tokenizer["model"].get("merges") or []
    log = logging.getLogger("gguf.vocab")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        special = gguf.SpecialVocab(folder, load_merges=bool(merges))
    except OSError:
        raise
    except Exception as error:  # its parsing trusts the files' structure
        raise _bad(
            folder / "tokenizer.json",
            "special tokens",
            f"cannot be understood: {type(error).__name__}: {error}",
        ) from None
    finally:
        log.setLevel(level)
    if (
        not isinstance(merges, list)
        or len(special.merges) != len(merges)
        or not all(isinstance(m, str) and m.count(" ") == 1 for m in special.merges)
    ):
        raise _bad(
            folder / "tokenizer.json",
            "model.merges",
            "expected pairs, or texts of two parts separated by a space",
        )
    out: Metadata = {}
    if special.merges:
        out["tokenizer.ggml.merges"] = ("arr[str]", special.merges)
    ids = dict(special.special_token_ids)
    _from_generation_config(folder, ids)
    _from_special_map(folder, tokens, ids)
    for kind, token_id in ids.items():
        if not 0 <= token_id < vocab_size:
            raise _bad(
                folder,
                kind,
                f"the {kind} token has the id {token_id}, expected one below "
                f"vocab_size {vocab_size}",
            )
        if kind in _SPECIAL_KEYS:
            out[f"tokenizer.ggml.{_SPECIAL_KEYS[kind]}"] = ("u32", token_id)
    for kind, value in special.add_special_token.items():
        if kind in ("bos", "eos", "sep"):
            out[f"tokenizer.ggml.add_{kind}_token"] = ("bool", value)
    return out


def _from_generation_config(folder: Path, ids: dict[str, int]) -> None:
    config = read_json_if_there(folder / "generation_config.json") or {}
    for kind in _SPECIAL:
        value = config.get(f"{kind}_token_id")
        if type(value) is int:
            ids.setdefault(kind, value)


def _from_special_map(folder: Path, tokens: list[str], ids: dict[str, int]) -> None:
    config = read_json_if_there(folder / "special_tokens_map.json") or {}
    for kind in _SPECIAL:
        entry = config.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if kind not in ids and isinstance(text, str) and text in tokens:
            ids[kind] = tokens.index(text)


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
