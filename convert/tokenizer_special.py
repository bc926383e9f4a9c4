"""Merges, special token ids and chat templates of a tokenizer, as GGUF metadata."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
from sardine_gguf.errors import FormatError

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
    "chat_template.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)


def special_metadata(
    folder: Path, tokenizer: dict[str, Any], tokens: list[str], vocab_size: int
) -> Metadata:
    """Merges, special token ids, add_*_token and the chat template."""
    for name in _COMPANIONS:
        if (folder / name).exists() and regular_size(folder / name) > MAX_JSON_BYTES:
            raise _bad(folder / name, name, "is too large")
    more = folder / "additional_chat_templates"
    for template in more.glob("*.jinja") if more.is_dir() else ():
        regular_size(template)
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
    _add_template(folder, special.chat_template, out)
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


def _add_template(folder: Path, template: Any, out: Metadata) -> None:
    file = folder / "chat_template.jinja"
    if template is None and file.exists():
        try:
            template = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise _bad(file, "chat_template", f"is not UTF-8: {error}") from None
    named = (
        [("default", template)]
        if isinstance(template, str)
        else [(t.get("name"), t.get("template")) for t in template or [] if isinstance(t, dict)]
    )
    extra = []
    for name, text in named:
        if not isinstance(name, str) or not isinstance(text, str):
            raise _bad(folder, "chat_template", "expected texts with names")
        if name == "default":
            out["tokenizer.chat_template"] = ("str", text)
        else:
            clean = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
            extra.append(clean)
            out[f"tokenizer.chat_template.{clean}"] = ("str", text)
    if extra:
        out["tokenizer.chat_templates"] = ("arr[str]", extra)


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
