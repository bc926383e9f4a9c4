"""What may reach a terminal: model text without escape bytes, colours only where they are welcome."""

from __future__ import annotations

import os
import re
from typing import TextIO

# C0 and C1 controls but tab and newline, and the marks that reorder text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

DIM = "\x1b[2m"
BOLD = "\x1b[1m"
RESET = "\x1b[0m"


def clean(text: str) -> str:
    """The text with control characters replaced, so that a model cannot drive the terminal."""
    return _UNSAFE.sub("\ufffd", text)


def wants_colour(stream: TextIO) -> bool:
    """True for a terminal, unless NO_COLOR is set or TERM is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Printer:
    """Writes an answer piece by piece; thoughts are dim (on a terminal) or go to `thoughts`.

    Args:
        answer: where the answer goes.
        thoughts: where thoughts go; None hides them.
    """

    def __init__(self, answer: TextIO, thoughts: TextIO | None) -> None:
        self._hidden = thoughts is None
        self._streams = {"content": answer, "reasoning": thoughts or answer}
        self._clean = {k: s.isatty() for k, s in self._streams.items()}
        self._dim = wants_colour(self._streams["reasoning"])
        self._channel = "content"

    def write(self, channel: str, text: str) -> None:
        """Prints a piece at once. Off a terminal the answer is passed on byte for byte."""
        if self._hidden and channel == "reasoning":
            return
        if channel != self._channel:
            self._switch(channel)
        stream = self._streams[channel]
        stream.write(clean(text) if self._clean[channel] else text)
        stream.flush()

    def end(self) -> None:
        """Ends the line, and the colour."""
        if self._channel == "reasoning":
            self._switch("content")
        answer = self._streams["content"]
        answer.write("\n")
        answer.flush()

    def _switch(self, channel: str) -> None:
        thoughts = self._streams["reasoning"]
        if channel == "reasoning":
            thoughts.write(DIM if self._dim else "")
        else:
            thoughts.write((RESET if self._dim else "") + "\n")
        thoughts.flush()
        self._channel = channel
