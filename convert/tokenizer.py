"""tokenizer.json and its companions as GGUF metadata (byte-level BPE only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from .chat_template import template_metadata
from .files import read_json, read_json_if_there
from .gguf_file import Metadata
from .tekken import CONTROL, NORMAL, tekken_metadata
from .tokenizer_rules import pre_tokenizer_name
from .tokenizer_special import special_metadata

USER_DEFINED, UNUSED = 4, 5


def tokenizer_metadata(
    folder: Path, arch: str, vocab_size: int, prefer_tekken: bool, warnings: list[str]
) -> Metadata:
    """The tokenizer.* keys of a model folder, as llama.cpp's converter writes them.

    Without any tokenizer file the model becomes one that works on token ids alone, and a warning
    says so.

    Args:
        prefer_tekken: take tekken.json, not tokenizer.json, where both are there.

    Raises:
        FormatError: the tokenizer is of another kind or malformed, or has ids outside vocab_size.
        OSError: a file cannot be read.
    """
    path, tekken = folder / "tokenizer.json", folder / "tekken.json"
    if tekken.exists() and (prefer_tekken or not path.exists()):
        out = tekken_metadata(tekken, arch, vocab_size, warnings)
        return {**out, **template_metadata(folder)}
    if not path.exists():
        others = [f for n in ("tokenizer.model*", "vocab.json") for f in sorted(folder.glob(n))]
        if others:
            raise FormatError(
                f"{others[0]}: this tokenizer file alone is not supported; save the tokenizer as "
                "tokenizer.json (with transformers), or put Mistral's tekken.json in the folder",
                file=str(others[0]),
            )
        warnings.append(f"{folder}: no tokenizer files; the output works on token ids alone")
        return {"tokenizer.ggml.model": ("str", "none")}
    tokenizer = read_json(path)
    tokens, types, holes = _tokens(tokenizer, vocab_size, path)
    if holes:
        warnings.append(
            f"{path}: {holes} of {vocab_size} token ids have no token; "
            "they are written as unused [PAD...] tokens"
        )
    out = {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", pre_tokenizer_name(tokenizer, path, warnings)),
        "tokenizer.ggml.tokens": ("arr[str]", tokens),
        "tokenizer.ggml.token_type": ("arr[i32]", types),
    }
    config = read_json_if_there(folder / "tokenizer_config.json") or {}
    if isinstance(config.get("add_prefix_space"), bool):
        out["tokenizer.ggml.add_space_prefix"] = ("bool", config["add_prefix_space"])
    out.update(special_metadata(folder, tokenizer, tokens, vocab_size))
    return {**out, **template_metadata(folder)}


def _tokens(
    tokenizer: dict[str, Any], vocab_size: int, path: Path
) -> tuple[list[str], list[int], int]:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _bad(path, "model", "expected a BPE tokenizer")
    if model.get("byte_fallback") or not _uses(tokenizer, "ByteLevel"):
        raise _bad(path, "model", "expected byte-level BPE (a ByteLevel pre-tokenizer or decoder)")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise _bad(path, "model.vocab", "expected an object of tokens")
    tokens: list[str | None] = [None] * vocab_size
    types = [UNUSED] * vocab_size

    def put(text: Any, token_id: Any, kind: int, field: str) -> None:
        if not isinstance(text, str) or type(token_id) is not int:
            raise _bad(path, field, "expected texts with integer ids")
        if not 0 <= token_id < vocab_size:
            raise _bad(
                path,
                field,
                f"the token {text[:80]!r} has the id {token_id}, expected one "
                f"below vocab_size {vocab_size} of config.json",
            )
        held = tokens[token_id]
        if held is not None and (held != text or types[token_id] != NORMAL):
            raise _bad(
                path,
                field,
                f"the id {token_id} belongs to two tokens, {held[:80]!r} and {text[:80]!r}",
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise _bad(path, field, f"the token of id {token_id} is not UTF-8 text") from None
        tokens[token_id], types[token_id] = text, kind

    for text, token_id in vocab.items():
        put(text, token_id, NORMAL, "model.vocab")
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(t, dict) for t in added):
        raise _bad(path, "added_tokens", "expected a list of objects")
    seen: dict[str, int] = {}
    for entry in added:
        text, token_id = entry.get("content"), entry.get("id")
        if isinstance(text, str) and seen.setdefault(text, token_id) != token_id:
            raise _bad(path, "added_tokens", f"the token {text[:80]!r} has two ids")
        if isinstance(text, str) and vocab.get(text, token_id) != token_id:
            raise _bad(
                path,
                "added_tokens",
                f"the token {text[:80]!r} has the id {token_id}, and {vocab[text]} in model.vocab",
            )
        control = entry.get("special") is True or _looks_special(text)
        put(text, token_id, CONTROL if control else USER_DEFINED, "added_tokens")
        if not control:
            tokens[token_id] = text.replace("\u2581", " ")
    holes = sum(t is None for t in tokens)
    return [t if t is not None else f"[PAD{i}]" for i, t in enumerate(tokens)], types, holes


def _looks_special(text: Any) -> bool:
    # Marks that some models give control tokens without declaring them special.
    return isinstance(text, str) and (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith(("<|", "<\uff5c")) and text.endswith(("|>", "\uff5c>")))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _steps(tokenizer: dict[str, Any], part: str, inner: str) -> list[dict[str, Any]]:
    top = tokenizer.get(part)
    if not isinstance(top, dict):
        return []
    steps = top.get(inner) if top.get("type") == "Sequence" else [top]
    return [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []


def _uses(tokenizer: dict[str, Any], kind: str) -> bool:
    return any(
        s.get("type") == kind
        for s in (
            *_steps(tokenizer, "pre_tokenizer", "pretokenizers"),
            *_steps(tokenizer, "decoder", "decoders"),
        )
    )


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
