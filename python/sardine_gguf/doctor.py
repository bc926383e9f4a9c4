"""sardine-doctor: what this machine and this installation can do, and what is wrong. Needs no model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sardine_gguf.program import run_program

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        remedy: what to do, "" where nothing is wrong.
    """

    name: str
    status: Status
    finding: str
    remedy: str = ""


def ok(name: str, finding: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, "ok", finding)


def build_parser() -> argparse.ArgumentParser:
    """The command line of sardine-doctor."""
    p = argparse.ArgumentParser(
        prog="sardine-doctor",
        description="Checks the installation, the processor, the memory and the kernels. Needs no model.",
        epilog="exit codes: 0 nothing is wrong (warnings included), 1 an error was found, 2 wrong use",
        allow_abbrev=False,
    )
    p.add_argument("--json", action="store_true", help="the checks as JSON")
    return p


def examine() -> list[Check]:
    """All checks, in order."""
    from sardine_gguf.doctor_checks import CHECKS

    found = []
    for check in CHECKS:
        try:
            found += check()
        except Exception as e:  # a doctor reports what it meets
            name = check.__name__.replace("_", " ")
            found.append(Check(name, "error", f"{type(e).__name__}: {e}", "please report this"))
    return found


def run(args: argparse.Namespace) -> int:
    """Prints the checks; 1 if one is an error."""
    checks = examine()
    failed = any(c.status == "error" for c in checks)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=2))
        return int(failed)
    width = max(len(c.name) for c in checks)
    for c in checks:
        print(f"{c.status:7}  {c.name:{width}}  {c.finding}")
        if c.remedy:
            print(f"{'':7}  {'':{width}}  -> {c.remedy}")
    return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-doctor; returns the exit code."""
    return run_program(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
