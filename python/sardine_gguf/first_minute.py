"""What a person sees first: what to do without a model, and a model that loads or says why not."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from sardine_gguf.errors import FormatError
from sardine_gguf.example import example_folder
from sardine_gguf.file_help import hint
from sardine_gguf.model import Sardine
from sardine_gguf.terminal import clean
from sardine_gguf.waiting import Waiting


def without_model() -> str:
    """What to do, in three lines."""
    here = sorted(p.name for p in Path.cwd().glob("*.gguf"))
    file = here[0] if here else "FILE.gguf"
    example = (
        "sardine-cli --example" if example_folder() else "make demo (in a clone of the repository)"
    )
    return "\n".join(
        (
            f"sardine-cli: no model: name one with -m/--model:      sardine-cli -m {file}",
            f"  to chat with a small example that comes with it:    {example}",
            "  to make a file of a base model and experts:         "
            "convert-sardine --base DIR --srde srde_weights.pt -o FILE.gguf",
        )
    )


def load_model(open_model: Callable[[], Sardine], path: str, adapter: str | None) -> Sardine:
    """The model; its warnings become lines on standard error, and errors say what to do about the file.

    Args:
        open_model: loads it.
        path, adapter: its files.

    Raises:
        FormatError, OSError: as the constructor, with a remedy where one is known.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Waiting(f"loading {Path(path).name}"):
                model = open_model()
    except FormatError as e:
        what = hint(e.file or path)
        if adapter is None and "adapter" in str(e) and not what:
            what = f"sardine-cli -m BASE.gguf --adapter {path}"
        if not what:
            raise
        raise FormatError(f"{e}: {what}", file=e.file, field=e.field) from None
    except OSError as e:
        name = e.filename if isinstance(e.filename, str) else path
        what = hint(name)
        reason = f"{e.strerror or e}{f': {what}' if what else ''}"
        raise type(e)(e.errno, reason, name) from None
    for warning in caught:
        print(f"sardine-cli: warning: {clean(str(warning.message))}", file=sys.stderr)
    return model
