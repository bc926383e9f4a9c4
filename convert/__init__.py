"""Converts a base model and a SRDE checkpoint to an extended GGUF file (docs/format.md)."""

from __future__ import annotations

from .conversion import OptionError, convert, write_base
from .report import ConversionReport

__all__ = ["ConversionReport", "OptionError", "convert", "write_base"]
