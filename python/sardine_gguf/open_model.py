"""What every method of Sardine works on: the native model, and a context on it until it is closed."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import Self

from sardine_gguf import _native
from sardine_gguf.context import ContextOptions


class OpenModel:
    """A loaded model with one context."""

    _model: _native.Model
    _session: _native.Session | None
    _context: ContextOptions

    def close(self) -> None:
        """Frees the context, and the mapping with the last context; later calls raise ValueError.

        Closing twice is fine, and other contexts on the model go on.
        """
        self._session = None
        self._forget_cached()
        if hasattr(self, "_model"):
            del self._model

    def _forget_cached(self) -> None:
        for base in type(self).__mro__:
            for name, value in vars(base).items():
                if isinstance(value, cached_property):
                    self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def session(self) -> _native.Session:
        """The native context."""
        if self._session is None:
            raise ValueError("this model is closed")
        return self._session

    @property
    def model(self) -> _native.Model:
        """The native model."""
        if self._session is None:
            raise ValueError("this model is closed")
        return self._model
