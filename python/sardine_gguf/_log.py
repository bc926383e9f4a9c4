"""What libllama and ggml say, as records of the logger "sardine_gguf"; never on the terminal unasked."""

from __future__ import annotations

import logging
import sys
import threading

logger = logging.getLogger("sardine_gguf")
logger.addHandler(logging.NullHandler())  # without one, Python prints warnings to standard error

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5
_line = threading.local()  # a message that has no newline yet, of each thread


def _receive(level: int, text: str) -> None:
    """Joins pieces to lines. ggml's level 5 goes on with the message before it."""
    if level != _CONTINUED:
        _flush()
        _line.level = _LEVELS.get(level, logging.INFO)
    _line.text = getattr(_line, "text", "") + text
    if text.endswith("\n"):
        _flush()


def _flush() -> None:
    text, _line.text = getattr(_line, "text", "").rstrip("\n"), ""
    if text.strip():
        # Facts about a file that libllama prints by the page, for which DEBUG is level enough.
        level = getattr(_line, "level", logging.INFO)
        logger.log(logging.DEBUG if level == logging.INFO else level, "%s", text)


def connect() -> None:
    """Takes over libllama's messages, unless llama_cpp is imported, whose own handler then stays."""
    from sardine_gguf import _native

    _native.set_logger(_receive, "llama_cpp" not in sys.modules)
