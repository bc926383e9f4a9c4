"""Which tokens a tokenizer.json makes of a text, as far as a reader of the GGUF file makes the same.

Of the rules of tokenizer.json a GGUF file keeps the merges and the name of a splitting rule. Whatever
else would change the tokens is refused; what changes those of few texts alone is a warning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from .tekken import PATTERN

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PRE = {PATTERN: "tekken", _LLAMA3: "llama-bpe", _GPT2: "gpt-2"}

_SPLIT_FIELDS = {"type", "pattern", "behavior", "invert"}
_BYTE_LEVEL_FIELDS = {"type", "add_prefix_space", "trim_offsets", "use_regex"}
# How a Split may treat its matches, and, inverted, the gaps between them. The known patterns match
# every character, so that each of these gives the matches one by one.
_OF_MATCHES = ("Isolated", "MergedWithPrevious", "MergedWithNext")
_OF_GAPS = (*_OF_MATCHES, "Removed")


def pre_tokenizer_name(tokenizer: dict[str, Any], path: Path, warnings: list[str]) -> str:
    """llama.cpp's name of the text splitting rule.

    Raises:
        FormatError: the text is changed before it is split, split in steps that the file cannot
            keep, or merged in another way than by the merges in their order.
    """
    _check_normalizer(tokenizer.get("normalizer"), path, warnings)
    model = tokenizer["model"]
    _check_merging(model, path, warnings)
    patterns = _patterns(tokenizer.get("pre_tokenizer"), path)
    name = _PRE.get(patterns[0]) if len(patterns) == 1 and isinstance(patterns[0], str) else None
    if name is None:
        warnings.append(
            f"{path}: pre_tokenizer: its splitting rule is not a known one; tekken's "
            "is used, and some texts may be split into other tokens"
        )
        name = "tekken"
    ignore = model.get("ignore_merges") is True
    if ignore != (name != "gpt-2"):
        warnings.append(
            f"{path}: ignore_merges is {str(ignore).lower()}, llama.cpp's {name} rule "
            f"uses {str(not ignore).lower()}; rare words may be split differently"
        )
    return name


def _check_normalizer(normalizer: Any, path: Path, warnings: list[str]) -> None:
    if normalizer is None:
        return
    steps = _steps(normalizer, "normalizers")
    kinds = [s.get("type") if isinstance(s, dict) else s for s in steps or [normalizer]]
    if kinds == ["NFC"]:  # most texts have this form already
        warnings.append(
            f"{path}: normalizer: NFC is not kept; texts in another form of Unicode are split "
            "into other tokens"
        )
    elif steps != []:
        raise _refused(path, "normalizer", kinds[0], "null")


def _check_merging(model: dict[str, Any], path: Path, warnings: list[str]) -> None:
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        value = model.get(field)
        if not (value is None or value == "" or (value == 0 and field == "dropout")):
            raise _refused(path, f"model.{field}", value, "null")
    vocab, seen = model["vocab"], set()
    merges = model.get("merges")
    # That they are pairs at all is checked where they are written.
    for pair in merges if isinstance(merges, list) else ():
        parts = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
            continue
        missing = next((t for t in (*parts, "".join(parts)) if t not in vocab), None)
        if missing is not None:
            raise _bad(
                path,
                "model.merges",
                f"a merge of {_shown(parts)} needs the token {_shown(missing)}, which is not in "
                "model.vocab; save the tokenizer again with the library that trained it",
            )
        seen.add(tuple(parts))
    if isinstance(merges, list) and len(seen) < len(merges):
        warnings.append(
            f"{path}: model.merges: a merge occurs twice; a reader of the file takes the first place"
        )


def _patterns(pre: Any, path: Path) -> list[Any]:
    """The patterns by which a text is split, one step after the other."""
    steps = _steps(pre, "pretokenizers")
    if not steps or not all(isinstance(s, dict) for s in steps):
        raise _refused(path, "pre_tokenizer", pre, "a ByteLevel step, or Split steps before one")
    *splits, last = steps
    field = "pre_tokenizer"
    if last.get("type") != "ByteLevel":
        raise _refused(path, field, last.get("type"), "ByteLevel as the last step")
    _known_fields(last, _BYTE_LEVEL_FIELDS, path)
    if last.get("add_prefix_space") is not False:
        raise _refused(path, f"{field}: add_prefix_space", last.get("add_prefix_space"), "false")
    out = []
    for step in splits:
        if step.get("type") != "Split":
            raise _refused(path, field, step.get("type"), "Split steps before ByteLevel")
        _known_fields(step, _SPLIT_FIELDS, path)
        behavior, invert = step.get("behavior"), step.get("invert", False)
        if not isinstance(invert, bool) or behavior not in (_OF_GAPS if invert else _OF_MATCHES):
            shown = f"{_shown(behavior)} with invert {_shown(invert)}"
            raise _refused(path, f"{field}: behavior", shown, "Isolated", quoted=False)
        pattern = step.get("pattern")
        out.append(pattern.get("Regex") if isinstance(pattern, dict) else None)
    use_regex = last.get("use_regex", True)
    if not isinstance(use_regex, bool):
        raise _refused(path, f"{field}: use_regex", use_regex, "true or false")
    return [*out, _GPT2] if use_regex else out


def _steps(part: Any, inner: str) -> list[Any] | None:
    """The steps of a Sequence, or the one step; None for what is neither."""
    if not isinstance(part, dict):
        return None
    steps = part.get(inner) if part.get("type") == "Sequence" else [part]
    return steps if isinstance(steps, list) else None


def _known_fields(step: dict[str, Any], known: set[str], path: Path) -> None:
    unknown = sorted(set(step) - known)
    if unknown:
        raise _refused(
            path, f"pre_tokenizer: {step['type']}", unknown[0], f"no field but {sorted(known)}"
        )


def _refused(path: Path, field: str, found: Any, expected: str, quoted: bool = True) -> FormatError:
    shown = _shown(found) if quoted else found
    return _bad(
        path,
        field,
        f"found {shown}, expected {expected}: a reader of the output would make other tokens; "
        "give the model's own tokenizer.json, or Mistral's tekken.json in its place",
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return _shown(value.get("type", "an object"))
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) != 2 else " and ".join(map(_shown, value))
    return repr(value)[:60] if isinstance(value, str) else str(value)[:60]


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
