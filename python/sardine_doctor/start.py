"""Entry points of the programs, from outside of sardine_gguf: its import takes a moment.

Ctrl-C during that moment ends a program as it does later, with exit code 130 and no traceback.
"""

from __future__ import annotations

import importlib


def _start(module: str) -> int:
    try:
        return int(importlib.import_module(f"sardine_gguf.{module}").main())
    except KeyboardInterrupt:
        return 130


def cli() -> int:
    """sardine-cli."""
    return _start("cli")


def perplexity() -> int:
    """sardine-perplexity."""
    return _start("perplexity")


def bench() -> int:
    """sardine-bench."""
    return _start("bench")


def convert() -> int:
    """convert-sardine."""
    return _start("convert.cli")


def inspect() -> int:
    """sardine-inspect."""
    return _start("inspect_cli")


def routing() -> int:
    """sardine-routing."""
    return _start("routing_cli")
