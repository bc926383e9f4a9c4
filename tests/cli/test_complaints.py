"""docs/complaints.md names tests that pytest collects, and docs/chat.md every command and variable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sardine_gguf.chat_commands_all import COMMANDS
from sardine_gguf.cli_environment import FLAGS, SWITCHES

ROOT = Path(__file__).parents[2]


def named_tests() -> list[str]:
    """The last column of the table, a node id a line."""
    rows = [
        line.strip("|\n ").split(" | ")
        for line in (ROOT / "docs" / "complaints.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| complaint")
    ]
    assert len(rows) >= 20
    assert all(len(row) == 4 and all(map(str.strip, row)) for row in rows)
    return [row[3].strip() for row in rows]


def collected(ids: list[str]) -> subprocess.CompletedProcess[str]:
    """Collects tests without running them; a name that pytest does not find is an error there."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *ids],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_each_complaint_has_tests_that_run() -> None:
    """Collected by pytest, in a function that is not skipped as a whole."""
    ids = sorted(set(named_tests()))
    result = collected(ids)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {
        line.partition("[")[0] for line in result.stdout.splitlines() if "::" in line
    }  # -q of addopts
    assert found == set(ids)
    for node in ids:
        file, _, name = node.partition("::")
        lines = (ROOT / file).read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith(f"def {name}("))
        above = lines[max(0, at - 12) : at]
        while above and "" in above:
            above = above[above.index("") + 1 :]
        assert not any("mark.skip(" in line or "mark.xfail" in line for line in above), node


def test_the_documentation_names_every_command_and_variable() -> None:
    text = (ROOT / "docs" / "chat.md").read_text()
    for command in COMMANDS:
        for name in command.names:
            assert f"`{name}" in text, name
    for name in (*FLAGS, *SWITCHES):
        assert f"`{name}`" in text or (name.endswith("_V") and "and `_V`" in text), name
