"""What a person sees first: what to do without a model, and a model that loads or says why not."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from sardine_gguf.errors import FormatError
from sardine_gguf.example import example_folder
from sardine_gguf.file_help import hint
from sardine_gguf.model import Sardine
from sardine_gguf.terminal import clean, clean_line
from sardine_gguf.waiting import Waiting


def without_model() -> str:
    """What to do, in three lines."""
    example = "sardine-cli --example" if example_folder() else "make demo"
    about = "a small model that comes with it" if example_folder() else "in the repository"
    file = next((p.name for p in sorted(Path.cwd().glob("*.gguf")) if _is_model(p)), "FILE.gguf")
    run = f"sardine-cli -m {clean_line(shlex.quote(file))}"
    width = max(len(example), len(run))
    return "\n".join(
        (
            "sardine-cli: no model is named (-m/--model); try",
            f"  {example:{width}}   # {about}",
            f"  {run:{width}}   # convert-sardine makes such files; --help says how",
        )
    )


def _is_model(path: Path) -> bool:
    """Whether a file looks like one that runs alone: GGUF, and no adapter."""
    try:
        with path.open("rb") as file:
            header = file.read(4096)
    except OSError:
        return False
    kind = header.partition(b"general.type")[2][:40]
    return header.startswith(b"GGUF") and b"adapter" not in kind


def load_model(
    open_model: Callable[[Callable[[float], None]], Sardine],
    path: str,
    *,
    program: str = "sardine-cli",
) -> Sardine:
    """The model; its warnings become lines on standard error, and errors say what to do about the file.

    Args:
        open_model: loads it, and tells its argument how much is done, 0.0 to 1.0.
        path: its file.
        program: whose warnings they are.

    Raises:
        FormatError, OSError: as the constructor, with a remedy where one is known.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Waiting(f"loading {Path(path).name}") as waiting:
                model = open_model(waiting.progress)
    except FormatError as e:
        what = hint(e.file or path)
        if "larger than the file" in str(e):
            what = "was it downloaded whole?"
        if not what:
            raise
        raise FormatError(f"{e}: {what}", file=e.file, field=e.field) from None
    except OSError as e:
        name = e.filename if isinstance(e.filename, str) else path
        what = hint(name)
        reason = f"{e.strerror or e}{f': {what}' if what else ''}"
        raise type(e)(e.errno, reason, name) from None
    for warning in caught:
        print(f"{program}: warning: {clean(str(warning.message))}", file=sys.stderr)
    return model
