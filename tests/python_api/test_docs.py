"""docs/python.md: its examples print what it shows, and it names every public method."""

from __future__ import annotations

import re
from pathlib import Path

from doc_examples import DEFAULT, prepare, run
from sardine_gguf import Sardine


def test_examples_print_what_is_shown(tmp_path: Path) -> None:
    """After a change of the example: python tests/python_api/doc_examples.py --update."""
    prepare(tmp_path)
    text = DEFAULT.read_text(encoding="utf-8")
    assert run(text, tmp_path) == text


def test_every_public_method_has_an_example() -> None:
    """As a use in a block of code."""
    code = "".join(re.findall(r"```python\n(.*?)```", DEFAULT.read_text(), re.DOTALL))
    names = {n for n in dir(Sardine) if not n.startswith("_") and n != "register"}
    missing = {n for n in names if not re.search(rf"\.{n}\b", code)}
    assert missing == set()
