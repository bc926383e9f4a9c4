"""Bytes of tokens to text that is certain: whole characters, no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextFilter:
    """Bytes in, text out: holds back incomplete characters and what may become a stop string.

    `text` pieces joined equal the bytes decoded as UTF-8, up to the first stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if any(not s for s in stop):
            raise ValueError("a stop string is empty")
        self._stop = tuple(stop)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self.emitted = 0  # characters given out
        self.stopped = False

    @property
    def position(self) -> int:
        """Characters before those that the next bytes begin or complete."""
        return self.emitted + len(self._held)

    def push(self, data: bytes, final: bool = False) -> str:
        """Text that is certain after these bytes. After a stop string `stopped` is True."""
        text = self._certain(data, final)
        self.emitted += len(text)
        return text

    def _certain(self, data: bytes, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + self._decode(data, final)
        ends = [i for i in (text.find(s) for s in self._stop) if i >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = 0 if final else self._partial_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _partial_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stop):
                return n
        return 0
