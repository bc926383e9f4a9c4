"""Exceptions of sardine_gguf. The native module raises these same classes."""

from __future__ import annotations


class SardineError(Exception):
    """Base of every error that this package raises on purpose."""


class FormatError(SardineError, ValueError):
    """A file is not what it must be. The message names the object, what was expected and found.

    Attributes:
        file: path of the offending file, "" if it is not known.
        field: key, tensor or part of the file that is wrong, "" if it is not known.
    """

    def __init__(self, message: str, *, file: str = "", field: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.field = field


class ContextOverflow(SardineError, ValueError):
    """More tokens than the context holds were asked for; nothing was evaluated."""


class InsufficientMemory(SardineError, MemoryError):
    """A request needs more memory than there is; nothing was allocated."""


class DeviceError(SardineError, RuntimeError):
    """A GPU was asked for that is not there or cannot be used, with what to install, or it failed."""


class BusyError(SardineError, RuntimeError):
    """The context is in use: it is evaluating in another thread."""


class ContextChanged(BusyError):
    """A generation cannot go on: another call has changed its context, or begun on it, since its last token.

    The newer use wins. Give each its own context with `new_context()`, or begin the older one again.
    """


class ModelChanged(SardineError, RuntimeError):
    """A model's file was written to or cut short while it is in use; nothing was evaluated since.

    Attributes:
        file: its path.
    """

    def __init__(self, message: str, *, file: str = "") -> None:
        super().__init__(message)
        self.file = file


class ForkError(SardineError, RuntimeError):
    """A process that was forked uses its parent's context, whose threads it does not have."""


class GrammarTooComplex(SardineError, ValueError):
    """A grammar has too many ways to go on after the text so far; the context is as it was."""


class Cancelled(SardineError):
    """The evaluation was stopped by `cancel()`; the context is as it was before that call."""
