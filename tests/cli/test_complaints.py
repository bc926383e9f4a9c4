"""docs/complaints.md names a test for each line, and docs/chat.md every command and variable."""

from __future__ import annotations

import re
from pathlib import Path

from sardine_gguf.chat_commands_all import COMMANDS
from sardine_gguf.cli_environment import FLAGS, SWITCHES

ROOT = Path(__file__).parents[2]


def test_each_complaint_has_a_test_that_exists() -> None:
    rows = [
        line.strip("|\n ").split(" | ")
        for line in (ROOT / "docs" / "complaints.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| complaint")
    ]
    assert len(rows) >= 20
    for row in rows:
        assert len(row) == 4, row
        file, _, name = row[3].strip().partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), row[3]


def test_the_documentation_names_every_command_and_variable() -> None:
    text = (ROOT / "docs" / "chat.md").read_text()
    for command in COMMANDS:
        for name in command.names:
            assert f"`{name}" in text, name
    for name in (*FLAGS, *SWITCHES):
        assert f"`{name}`" in text or (name.endswith("_V") and "and `_V`" in text), name
