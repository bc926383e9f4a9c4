"""Loads the ggml and libllama of llama-cpp-python, once per process, before the extension needs them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from importlib import metadata
from pathlib import Path

LLAMA_CPP_VERSION = "0.3.36"
_INSTALL = f"pip install llama-cpp-python=={LLAMA_CPP_VERSION}"


def _library_dir() -> Path:
    """The folder that `llama_cpp` itself loads from; it honours LLAMA_CPP_LIB_PATH, so we do too."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ImportError(f"sardine_gguf needs llama-cpp-python {LLAMA_CPP_VERSION}: {_INSTALL}")
    return Path(spec.origin).parent / "lib"


def load() -> None:
    """Maps libllama (and ggml with it) from the path that `llama_cpp` uses.

    libllama.so and libllama.so.0 are separate files: whichever is opened first by its path is the copy
    that the soname then resolves to, so opening llama_cpp's own path first keeps one copy in the process.

    Raises:
        ImportError: llama-cpp-python is missing or of another version, with what to install.
    """
    try:
        version = metadata.version("llama_cpp_python")
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"sardine_gguf needs llama-cpp-python {LLAMA_CPP_VERSION}, none is installed: {_INSTALL}"
        ) from None
    if version != LLAMA_CPP_VERSION:
        raise ImportError(
            f"sardine_gguf was built for llama-cpp-python {LLAMA_CPP_VERSION}, found {version}: {_INSTALL}"
        )
    path = _library_dir() / "libllama.so"
    try:
        ctypes.CDLL(str(path))
    except OSError as e:
        why = f"cannot load {path}: {e}"
        if os.environ.get("LLAMA_CPP_LIB_PATH"):
            raise ImportError(
                f"{why}. LLAMA_CPP_LIB_PATH names that folder: unset it, or name the one with libllama.so"
            ) from e
        raise ImportError(f"{why}. Reinstall it: {_INSTALL}") from e
