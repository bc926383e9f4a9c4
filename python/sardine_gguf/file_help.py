"""What to do about a model file that is missing or something else, in one line."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

_CONVERT = "convert-sardine --base FOLDER --srde srde_weights.pt -o model.gguf"
_ENTRIES = 10_000  # of a folder, looked at for names


def hint(path: str) -> str:
    """What is wrong with a path that did not load, and what to do; "" if nothing is known."""
    try:
        if "://" in path:
            return "models are files here: download it first, and name the file"
        if not os.path.lexists(path):
            return _missing(Path(path))
        place = Path(path)
        if place.is_dir():
            return _folder(place)
        if not place.is_file():
            return ""  # the loader says it
        with place.open("rb") as file:
            return _content(file.read(4096), place)
    except OSError:
        return ""


def _names(folder: Path, suffix: str = "") -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry, _ in zip(entries, range(_ENTRIES), strict=False):
            if entry.name.lower().endswith(suffix) and not entry.name.startswith("."):
                names.append(entry.name)
    return sorted(names)


def _some(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = _names(path.parent)
    lower = {n.lower(): n for n in names}
    exact = lower.get(path.name.lower()) or lower.get(f"{path.name.lower()}.gguf")
    near = [exact] if exact else difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(str(path.parent / n) for n in near)}?"
    models = [n for n in names if n.lower().endswith(".gguf")]
    return f"GGUF files in {path.parent}: {_some(models)}" if models else ""


def _folder(path: Path) -> str:
    models = _names(path, ".gguf")
    if models:
        return f"name a file in it: {_some([str(path / n) for n in models])}"
    if _names(path, ".safetensors"):
        return f"this is a model in safetensors: {_CONVERT.replace('FOLDER', str(path))}"
    if _names(path, ".pt"):
        return f"it holds a PyTorch checkpoint: {_CONVERT}"
    return "expected a GGUF file"


def _content(data: bytes, path: Path) -> str:
    start = data.lstrip()[:200].lower()
    if not data:
        return "did the download stop at once?"
    if data.startswith(b"GGUF"):
        return ""  # the loader's own words say more
    if start.startswith((b"<!doctype html", b"<html")):
        return "this is a web page: download the file that it shows"
    if data.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file: git lfs pull fetches it"
    if path.suffix == ".safetensors" or (
        data[8:10] == b'{"' and data[:8].rstrip(b"\0") != data[:8]
    ):
        return f"this is a model in safetensors: {_CONVERT.replace('FOLDER', str(path.parent))}"
    if data.startswith((b"PK\x03\x04", b"\x80\x02")):
        return f"this is a PyTorch checkpoint (or an archive): {_CONVERT}"
    if data[:4] in (b"lmgg", b"tjgg", b"fmgg", b"algg"):
        return "this is llama.cpp's format from before GGUF: convert the model again"
    if data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        return "this is compressed: unpack it first"
    return "was it downloaded whole, and is it a model?"
