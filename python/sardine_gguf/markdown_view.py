"""Answers as Markdown on a terminal, block by block: finished ones stay, the one being written is redrawn."""

from __future__ import annotations

import re
import time
from typing import TextIO

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from sardine_gguf.terminal import ColourMode, Printer, clean, wants_colour

# rich leaves HTML and definitions of links out; a type like `<int>` in an answer is text.
_PARSER = (
    MarkdownIt()
    .enable(["strikethrough", "table"])
    .disable(["html_block", "html_inline", "reference"])
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def finished(text: str) -> int:
    """Length of the start of a Markdown text that no later text changes: whole blocks, fences closed."""
    end = at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
        elif mark:
            fence = mark[1]
        elif not line.strip() and line.endswith("\n"):
            end = at
    return end


class MarkdownPrinter:
    """Like Printer, for terminals.

    Links are written out and not made clickable, so that what is opened is what is read.
    """

    def __init__(self, out: TextIO, thoughts: TextIO | None, *, colour: ColourMode) -> None:
        self._printer = Printer(out, thoughts, colour=colour)
        colours = wants_colour(out, colour)
        self._console = Console(file=out, no_color=not colours, highlight=False, emoji=False)
        self._text = ""
        self._live: Live | None = None
        self._drawn = 0.0

    def write(self, channel: str, text: str) -> None:
        """Takes a piece."""
        if channel == "reasoning":
            self._settle(len(self._text))
            self._printer.write(channel, text)
            return
        self._printer.write(channel, "")  # ends the thoughts
        self._text += clean(text)
        self._settle(finished(self._text))
        if self._text.strip():
            self._draw()

    def end(self) -> None:
        """Draws what is left for good."""
        self._printer.write("content", "")
        self._settle(len(self._text))

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        if time.monotonic() - self._drawn > 0.05:
            self._live.update(self._markdown(self._text), refresh=True)
            self._drawn = time.monotonic()

    def _settle(self, end: int) -> None:
        """Prints the text up to `end`, which then stays."""
        if end == 0:
            return
        live, self._live = self._live, None
        if live is not None:
            live.update("", refresh=False)
            live.stop()
        done, self._text = self._text[:end], self._text[end:]
        if done.strip():
            self._console.print(self._markdown(done))

    @staticmethod
    def _markdown(text: str) -> Markdown:
        shown = Markdown("", hyperlinks=False)
        shown.markup, shown.parsed = text, _PARSER.parse(text)
        return shown
