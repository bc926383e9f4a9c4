"""llama.cpp's --repack and --no-repack; off is the default here, so that loading stays a mapping."""

from __future__ import annotations

import argparse


def add_repack_flag(p: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds both, and -nr."""
    p.add_argument(
        "--repack",
        action="store_true",
        help="copy the weights into layouts that tokens are generated with faster on some processors "
        "(docs/performance.md); loads for seconds and takes memory for the copies",
    )
    p.add_argument(
        "-nr",
        "--no-repack",
        dest="repack",
        action="store_false",
        help="use the mapped weights as they are (the default)",
    )
