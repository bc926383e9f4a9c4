"""The flags of sardine-cli that are about experts."""

from __future__ import annotations

import argparse

from sardine_gguf.expert_settings import parse_text

SETTINGS = "NAME=WEIGHT forces, NAME=mute mutes, NAME=+BIAS or -BIAS"


def experts_text(text: str) -> str:
    """Settings as `Sardine.experts` takes them; "reset" is none. Raises ArgumentTypeError for no settings."""
    if text.strip() == "reset":
        return ""
    try:
        if parse_text(text):
            return text
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    raise argparse.ArgumentTypeError(f"it is empty, expected {SETTINGS} biases, or reset")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --experts and --show-routing."""
    g = parser.add_argument_group("experts")
    g.add_argument(
        "--experts",
        type=experts_text,
        metavar="SET",
        help=f'steer them, as "code=mute,logic=+2": {SETTINGS}; reset: the router chooses',
    )
    g.add_argument(
        "--show-routing",
        action="store_true",
        help="colour each token by the expert that leads where it was written, with a legend",
    )
