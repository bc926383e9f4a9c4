"""What may reach a terminal: model text without escape bytes, colours only where they are welcome."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from typing import Literal, TextIO

# C0 and C1 controls but tab and newline, the marks that reorder text, and halves of characters.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

DIM = "\x1b[2m"
BOLD = "\x1b[1m"
RESET = "\x1b[0m"
ERASE_LINE = "\r\x1b[K"

ColourMode = Literal["auto", "on", "off"]


def clean(text: str) -> str:
    """The text with control characters and lone surrogates replaced by U+FFFD.

    A model cannot drive the terminal with it, and it can be encoded.
    """
    return _UNSAFE.sub("\ufffd", text)


def clean_line(text: str) -> str:
    """The same for names of files, models and experts, which are one line: line ends and tabs go, too."""
    return clean(text).replace("\n", "\ufffd").replace("\t", "\ufffd")


def moves_cursor(stream: TextIO) -> bool:
    """True for a terminal that understands escape sequences."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def wants_colour(stream: TextIO, mode: ColourMode = "auto") -> bool:
    """True for a terminal, unless NO_COLOR is set or TERM is dumb; "on" and "off" decide by themselves."""
    if mode != "auto":
        return mode == "on"
    return moves_cursor(stream) and not os.environ.get("NO_COLOR")


def columns(stream: TextIO | None = None) -> int:
    """Width in characters of the terminal that a stream is, or else of the one that the program runs on."""
    try:
        if stream is not None and (own := os.get_terminal_size(stream.fileno()).columns):
            return own
    except (OSError, ValueError):  # no terminal, or no file at all
        pass
    return shutil.get_terminal_size().columns


def line_width(stream: TextIO) -> int:
    """Columns that a line may take on a terminal; 0, which is any number, elsewhere."""
    return columns(stream) if stream.isatty() else 0


class Printer:
    """Writes an answer piece by piece; thoughts are dim (on a terminal) or go to `thoughts`.

    Args:
        answer: where the answer goes.
        thoughts: where thoughts go; None hides them.
        colour: whether colours are welcome.
        style: asked before each piece for the SGR sequence that colours it, "" for none; only with colours.
    """

    def __init__(
        self,
        answer: TextIO,
        thoughts: TextIO | None,
        *,
        colour: ColourMode = "auto",
        style: Callable[[], str] | None = None,
    ) -> None:
        self._hidden = thoughts is None
        self._streams = {"content": answer, "reasoning": thoughts or answer}
        self._clean = {k: s.isatty() or colour == "on" for k, s in self._streams.items()}
        self._colour = {k: wants_colour(s, colour) for k, s in self._streams.items()}
        self._dim = self._colour["reasoning"]
        self._style = style
        self._channel = "content"

    def write(self, channel: str, text: str) -> None:
        """Prints a piece at once. Off a terminal the answer is passed on byte for byte."""
        if self._hidden and channel == "reasoning":
            return
        if channel != self._channel:
            self._switch(channel)
        shown = clean(text) if self._clean[channel] else text
        if self._style and self._colour[channel]:
            style = self._style()
            after = RESET + (DIM if channel == "reasoning" else "")
            shown = f"{style}{shown}{after}" if style else shown
        self._put(channel, shown)

    def end(self) -> None:
        """Ends the line, and the colour."""
        if self._channel == "reasoning":
            self._switch("content")
        self._put("content", "\n")

    def _put(self, channel: str, text: str) -> None:
        stream = self._streams[channel]
        stream.write(text)
        stream.flush()

    def _switch(self, channel: str) -> None:
        if channel == "reasoning":
            self._put("reasoning", DIM if self._dim else "")
        else:
            self._put("reasoning", (RESET if self._dim else "") + "\n")
        self._channel = channel
