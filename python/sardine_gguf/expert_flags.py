"""The flags of sardine-cli that are about experts."""

from __future__ import annotations

import argparse

SETTINGS = "NAME=WEIGHT forces, NAME=mute mutes, NAME=+BIAS or -BIAS"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --experts and --show-routing."""
    g = parser.add_argument_group("experts")
    g.add_argument(
        "--experts", metavar="SET", help=f'steer them, as "code=mute,logic=+2": {SETTINGS}'
    )
    g.add_argument(
        "--show-routing",
        action="store_true",
        help="colour each token by the expert that leads where it was written, with a legend",
    )
