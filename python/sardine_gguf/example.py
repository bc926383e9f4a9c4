"""The bundled example: where it is, and a model file made from it on first use."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sardine_gguf.errors import FormatError
from sardine_gguf.waiting import Waiting

QUESTION = "What is 15% of 80?"
_OUTTYPE = "q8_0"


def example_folder() -> Path | None:
    """The example's checkpoint, in the installed package or in the repository; None if it is in neither."""
    here = Path(__file__).parent
    for folder in (here / "tiny-sardine", here.parents[1] / "examples" / "tiny-sardine"):
        if (folder / "srde_weights.pt").is_file() and (folder / "base").is_dir():
            return folder
    return None


def cache_folder() -> Path:
    """Where files are kept that can be made again, by the XDG rules."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sardine_gguf"


def example_file() -> Path:
    """The example as a GGUF file, converted the first time that it is asked for.

    Raises:
        FormatError: the example is not installed.
        OSError: the cache cannot be written.
    """
    folder = example_folder()
    if folder is None:
        raise FormatError(
            "the bundled example is not installed: install sardine_gguf from its repository, or name a "
            "model with -m"
        )
    sources = sorted(p for p in [*folder.glob("base/*"), folder / "srde_weights.pt"] if p.is_file())
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    target = cache_folder() / f"{digest.hexdigest()[:12]}-{_OUTTYPE}" / "tiny-sardine.gguf"
    if not target.is_file():
        from sardine_gguf.convert import convert  # type: ignore[import-untyped,unused-ignore]

        target.parent.mkdir(parents=True, exist_ok=True)
        with Waiting("converting the bundled example"):
            convert(
                folder / "base", folder / "srde_weights.pt", target, outtype=_OUTTYPE, force=True
            )
    return target
