"""tekken.json, Mistral's own tokenizer file, as GGUF metadata.

Special tokens have the ids from 0, the others follow in the order of their ranks. The file holds no
merges: in byte-level BPE with ranks, a token can be made by any pair that is in the vocabulary,
better pairs first.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from .files import read_json
from .gguf_file import Metadata

NORMAL, CONTROL = 1, 3
MAX_TOKEN_BYTES = 1024
MAX_SPLITS = 1 << 28  # bytes looked at while the merges are searched

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Files of the versions up to v7 may leave out their special tokens, which are then these.
_OLD_SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
_OLD_VERSIONS = ("v1", "v2", "v3", "v7")


def tekken_metadata(path: Path, arch: str, vocab_size: int, warnings: list[str]) -> Metadata:
    """The tokenizer.* keys of a tekken.json, as llama.cpp's converter writes them.

    Args:
        vocab_size: rows of the embedding, which the tokens must fill.

    Raises:
        FormatError: the file is malformed or has another number of tokens.
        OSError: it cannot be read.
    """
    data = read_json(path)
    config = data.get("config")
    if not isinstance(config, dict):
        raise _bad(path, "config", "expected an object")
    total = _number(path, config, "default_vocab_size")
    n_special = _number(path, config, "default_num_special_tokens")
    if total != vocab_size or n_special > total:
        raise _bad(
            path,
            "default_vocab_size",
            f"{total} tokens, {n_special} of them special; the model has {vocab_size}",
        )
    special = _special(data, config, n_special, path)
    words = _words(data, total - n_special, path)
    if config.get("pattern") != PATTERN:
        warnings.append(
            f"{path}: pattern: its splitting rule is not a known one; tekken's is used, and some "
            "texts may be split into other tokens"
        )
    tokens = special + [_printable(w) for w in words]
    if len(set(tokens)) != total:
        raise _bad(path, "vocab", "a special token is also an ordinary one")
    ids = {text: i for i, text in enumerate(special)}
    for needed in ("<unk>", "<s>", "</s>"):
        if needed not in ids:
            raise _bad(path, "special_tokens", f"{needed} is not there")
    return {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", "tekken"),
        "tokenizer.ggml.merges": ("arr[str]", _merges(words, path)),
        "tokenizer.ggml.bos_token_id": ("u32", ids["<s>"]),
        "tokenizer.ggml.eos_token_id": ("u32", ids["</s>"]),
        "tokenizer.ggml.unknown_token_id": ("u32", ids["<unk>"]),
        "tokenizer.ggml.padding_token_id": ("u32", ids.get("<pad>", ids["</s>"])),
        "tokenizer.ggml.tokens": ("arr[str]", tokens),
        # Integers, as llama.cpp's converter writes them and libllama takes them.
        "tokenizer.ggml.scores": ("arr[i32]", [0] * total),
        "tokenizer.ggml.token_type": (
            "arr[i32]",
            [CONTROL] * n_special + [NORMAL] * len(words),
        ),
        f"{arch}.vocab_size": ("u32", total),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
    }


def _special(data: dict[str, Any], config: dict[str, Any], n: int, path: Path) -> list[str]:
    entries = data.get("special_tokens")
    if entries is None:
        if config.get("version") not in _OLD_VERSIONS:
            raise _bad(path, "special_tokens", "is missing")
        texts = list(_OLD_SPECIAL)
    else:
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise _bad(path, "special_tokens", "expected a list of objects")
        texts = []
        for rank, entry in enumerate(entries):
            text = entry.get("token_str")
            if entry.get("rank") != rank or not isinstance(text, str) or not _is_utf8(text):
                raise _bad(path, "special_tokens", f"expected a text of rank {rank} at that place")
            texts.append(text)
    if len(texts) > n:
        raise _bad(path, "special_tokens", f"{len(texts)} of them, config says {n}")
    texts += [f"<SPECIAL_{i}>" for i in range(len(texts), n)]
    if len(set(texts)) != n:
        raise _bad(path, "special_tokens", "a token occurs twice")
    return texts


def _words(data: dict[str, Any], n: int, path: Path) -> list[bytes]:
    vocab = data.get("vocab")
    if not isinstance(vocab, list) or not 256 <= n <= len(vocab):
        found = len(vocab) if isinstance(vocab, list) else type(vocab).__name__
        raise _bad(path, "vocab", f"expected at least {max(n, 256)} tokens, found {found}")
    words: list[bytes] = []
    for rank, entry in enumerate(vocab[:n]):
        if not isinstance(entry, dict) or entry.get("rank") != rank:
            raise _bad(path, "vocab", f"expected an object of rank {rank} at that place")
        try:
            word = base64.b64decode(entry["token_bytes"], validate=True)
        except (binascii.Error, KeyError, TypeError, ValueError):
            raise _bad(path, "vocab", f"token_bytes of rank {rank} is not base64") from None
        if not 1 <= len(word) <= MAX_TOKEN_BYTES or (rank < 256 and word != bytes([rank])):
            raise _bad(
                path,
                "vocab",
                f"rank {rank} has {len(word)} bytes, expected 1 to {MAX_TOKEN_BYTES}, and the "
                "single bytes in order at first",
            )
        words.append(word)
    if len(set(words)) != n:
        raise _bad(path, "vocab", "a token occurs twice")
    return words


def _merges(words: list[bytes], path: Path) -> list[str]:
    """Every pair of tokens that makes a token, by the token's rank and then by the pair's ranks."""
    if sum(len(w) ** 2 for w in words) > MAX_SPLITS:
        raise _bad(path, "vocab", "the tokens are too long")
    ranks = {word: i for i, word in enumerate(words)}
    printable = [_printable(w) for w in words]
    out: list[str] = []
    for rank, word in enumerate(words[256:], 256):
        pairs = sorted(
            (left, right)
            for i in range(1, len(word))
            if (left := ranks.get(word[:i])) is not None
            and (right := ranks.get(word[i:])) is not None
        )
        if not pairs:
            raise _bad(path, "vocab", f"the token of rank {rank} is not made of two others")
        out += [f"{printable[left]} {printable[right]}" for left, right in pairs]
    return out


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: itself, or one from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, extra = [], 0
    for byte in range(256):
        letters.append(chr(byte if byte in plain else 256 + extra))
        extra += byte not in plain
    return letters


_LETTERS = _byte_letters()


def _printable(word: bytes) -> str:
    return "".join([_LETTERS[b] for b in word])


def _number(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value < 2**31:
        raise _bad(path, key, f"expected an integer from 0 to 2^31 - 1, found {str(value)[:40]!r}")
    return value


def _is_utf8(text: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in text)


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
