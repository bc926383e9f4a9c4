"""Runs the Python blocks of a Markdown file; compares or rewrites the ```text blocks of their output.

The blocks run in order, in one namespace, in a folder with the bundled example as tiny-sardine.gguf.

usage: python tests/python_api/doc_examples.py [--update] [FILE...]    (default: docs/python.md)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-sardine"
DEFAULT = ROOT / "docs" / "python.md"
# A block of code and, if it is there, the output that follows.
_BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def prepare(folder: Path) -> None:
    """Puts the example's file into a folder."""
    from sardine_gguf.convert import convert

    convert(
        EXAMPLE / "base", EXAMPLE / "srde_weights.pt", folder / "tiny-sardine.gguf", outtype="q8_0"
    )


def run(text: str, folder: Path) -> str:
    """The same Markdown with the output that the blocks have now.

    Raises what a block raises, with its line in the file.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    parts, end = [], 0
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in _BLOCK.finditer(text):
            code, line = block.group(1), text.count("\n", 0, block.start(1))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * line + code, "example", "exec"), namespace)
            shown = f"```python\n{code}```\n"
            if out.getvalue():
                shown += f"\n```text\n{out.getvalue()}```\n"
            parts += [text[end : block.start()], shown]
            end = block.end()
    finally:
        os.chdir(before)
    return "".join(parts) + text[end:]


def main() -> int:
    """Exit code 1 if a file does not show what its blocks print."""
    parser = argparse.ArgumentParser(
        description="Check or update the examples of the documentation."
    )
    parser.add_argument("files", nargs="*", type=Path, default=[DEFAULT])
    parser.add_argument("--update", action="store_true", help="write what the blocks print")
    arguments = parser.parse_args()
    stale = 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for file in arguments.files:
            text = file.read_text(encoding="utf-8")
            now = run(text, Path(folder))
            if now == text:
                continue
            print(f"{file}: {'updated' if arguments.update else 'stale, run with --update'}")
            if arguments.update:
                file.write_text(now, encoding="utf-8")
            else:
                stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
