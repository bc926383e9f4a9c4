"""Run SaRDinE models from one GGUF file."""

from sardine_gguf import _libs, _log

_libs.load()
_log.connect()

from sardine_gguf.errors import (  # noqa: E402
    BusyError,
    Cancelled,
    ContextChanged,
    ContextOverflow,
    DeviceError,
    ForkError,
    FormatError,
    GrammarTooComplex,
    InsufficientMemory,
    ModelChanged,
    SardineError,
)
from sardine_gguf.model import Sardine  # noqa: E402
from sardine_gguf.options import GenerationOptions  # noqa: E402
from sardine_gguf.sampling import SamplingOptions  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "BusyError",
    "Cancelled",
    "ContextChanged",
    "ContextOverflow",
    "DeviceError",
    "ForkError",
    "FormatError",
    "GenerationOptions",
    "GrammarTooComplex",
    "InsufficientMemory",
    "ModelChanged",
    "SamplingOptions",
    "Sardine",
    "SardineError",
    "__version__",
]
