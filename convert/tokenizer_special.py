"""Merges and special token ids of a tokenizer, as GGUF metadata.

The rules are those of llama.cpp's converter: which token begins and ends a text is read off the
post-processor, what the names stand for off tokenizer_config.json, and ids off config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from .files import read_json_if_there
from .gguf_file import Metadata

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}


def special_metadata(
    folder: Path, tokenizer: dict[str, Any], tokens: list[str], vocab_size: int
) -> Metadata:
    """Merges, special token ids and add_*_token.

    Raises:
        FormatError: merges that are no pairs, ids outside the vocabulary, a malformed file.
    """
    out: Metadata = {}
    merges = _merges(tokenizer["model"].get("merges") or [], folder)
    if merges:
        out["tokenizer.ggml.merges"] = ("arr[str]", merges)
    roles = _Roles(read_json_if_there(folder / "tokenizer_config.json") or {})
    path = folder / "tokenizer.json"
    for step in _processors(tokenizer.get("post_processor"), path):
        roles.read(step, path)
    ids = _ids(roles, tokenizer.get("added_tokens") or [], folder)
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
        if kind in _KEYS:  # no key is defined for cls
            out[f"tokenizer.ggml.{_KEYS[kind]}"] = ("u32", token_id)
    for kind, value in roles.added().items():
        if kind in ("bos", "eos", "sep"):
            out[f"tokenizer.ggml.add_{kind}_token"] = ("bool", value)
    return out


def _merges(merges: Any, folder: Path) -> list[str]:
    """Pairs as texts of two parts; a space within a part is written as GPT-2's letter for it."""
    out = []
    for pair in merges if isinstance(merges, list) else [None]:
        parts = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(parts, list) or len(parts) != 2 or not all(map(_is_text, parts)):
            raise _bad(
                folder / "tokenizer.json",
                "model.merges",
                "expected pairs, or texts of two parts separated by a space",
            )
        out.append(" ".join(part.replace(" ", "\u0120") for part in parts))
    return out


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


class _Roles:
    """Which token has which role, as tokenizer_config.json and the post-processor say.

    tokens: the roles' entries, texts or objects with content. add: whether a text gets the token.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.kinds = list(_SPECIAL)
        self.tokens = {kind: config.get(f"{kind}_token") for kind in _SPECIAL}
        self.add: dict[str, bool] = {}
        for kind, other in (("bos", "cls"), ("eos", "sep")):
            self.tokens[kind] = self.tokens[kind] or self.tokens[other]

    def read(self, step: dict[str, Any], path: Path) -> None:
        """Takes a step of the post-processor into account; later ones win."""
        kind = step.get("type")
        if kind == "ByteLevel":
            self.add.setdefault("bos", False)
            self.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            self.add.update(bos=True, eos=True, sep=True)
            for role in ("cls", "sep"):
                entry = step.get(role)
                if not self.tokens[role] and isinstance(entry, list) and entry:
                    self.tokens[role] = entry[0]
        elif kind == "TemplateProcessing":
            first, last = self._single(_pieces(step, "single", path))
            self._pair(_pieces(step, "pair", path), first, last)

    def _single(self, pieces: list[dict[str, Any]]) -> tuple[Any, Any]:
        if len(pieces) < 2:
            return None, None
        first, last = _id(pieces[0], "SpecialToken"), _id(pieces[-1], "SpecialToken")
        begins = (self.tokens["bos"], self.tokens["cls"])
        if first and first not in begins:
            self.tokens["bos"] = self.tokens["bos"] or first
            self.tokens["cls"] = self.tokens["cls"] or (first if self.config else None)
        if first:
            self.add["bos"] = first in (self.tokens["bos"], self.tokens["cls"])
        if last and last != self.tokens["eos"]:
            # The configured end of a text becomes an end of a turn.
            spare = next((k for k in ("eot", "eom") if k not in self.kinds), None)
            if self.config and spare:
                self.kinds.append(spare)
                self.tokens[spare] = self.tokens["eos"]
            self.tokens["eos"] = last
        if last:
            self.add["eos"] = True
        return first, last

    def _pair(self, pieces: list[dict[str, Any]], first: Any, last: Any) -> None:
        if pieces and first and _id(pieces[0], "SpecialToken") == first:
            pieces = pieces[1:]
        if pieces and last and _id(pieces[-1], "SpecialToken") == last:
            pieces = pieces[:-1]
        if len(pieces) < 3 or (_id(pieces[0], "Sequence"), _id(pieces[-1], "Sequence")) != (
            "A",
            "B",
        ):
            return
        between = [_id(piece, "SpecialToken") for piece in pieces[1:-1]]
        ends = [e for e in (self.tokens["sep"], self.tokens["eos"]) if e]
        add = (between[0] in ends and not last) or (len(between) == 2 and between[1] in ends)
        self.add["sep"] = add
        if add and not self.tokens["sep"]:
            self.tokens["sep"] = self.tokens["eos"]

    def added(self) -> dict[str, bool]:
        """Whether a text gets the token; the post-processor wins over tokenizer_config.json."""
        out = dict(self.add)
        for kind in self.kinds:
            value = self.config.get(f"add_{kind}_token")
            if isinstance(value, bool):
                out.setdefault(kind, value)
        return out


def _processors(post: Any, path: Path) -> list[dict[str, Any]]:
    steps = post.get("processors", [post]) if isinstance(post, dict) else post or []
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise _bad(path, "post_processor", "expected an object, or one with a list of processors")
    return steps


def _pieces(step: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    pieces = step.get(key) or []
    if not isinstance(pieces, list) or not all(isinstance(p, dict) for p in pieces):
        raise _bad(path, "post_processor", f"{key}: expected a list of objects")
    return pieces


def _id(piece: dict[str, Any], kind: str) -> Any:
    entry = piece.get(kind)
    return entry.get("id") if isinstance(entry, dict) else None


def _ids(roles: _Roles, added: list[dict[str, Any]], folder: Path) -> dict[str, int]:
    ids: dict[str, int] = {}
    config = read_json_if_there(folder / "config.json") or {}
    text = config.get("text_config")
    # Without a tokenizer_config.json the names are not looked up.
    for kind in roles.kinds if roles.config else ():
        entry = roles.tokens[kind]
        content = entry.get("content") if isinstance(entry, dict) else entry
        found = next((t.get("id") for t in added if t.get("content") == content), None)
        if isinstance(content, str) and type(found) is int:
            ids[kind] = found
    for kind in roles.kinds:
        value = config.get(f"{kind}_token_id")
        if value is None and isinstance(text, dict):
            value = text.get(f"{kind}_token_id")
        if type(value) is int:
            ids.setdefault(kind, value)
    return ids


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
