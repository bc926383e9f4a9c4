"""What every method of Sardine works on: the native model, and a context on it until it is closed."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import NoReturn, Protocol, Self
from weakref import ref

from sardine_gguf import _native
from sardine_gguf.context import ContextOptions
from sardine_gguf.errors import Cancelled


class Closable(Protocol):
    """What has memory of its own on a model."""

    def let_go(self) -> None:
        """Frees it."""


class OpenModel:
    """A loaded model with one context."""

    _model: _native.Model
    _session: _native.Session | None
    _context: ContextOptions
    _running: dict[int, ref[Closable]]  # generations that are not let go of, by id

    def close(self) -> None:
        """Frees the context, and the mapping with the last context; later calls raise ValueError.

        So does the next token of a generation that has not ended. An evaluation in another thread goes on to
        its end, and the memory goes after it. Closing twice is fine, and other contexts on the model go on.
        """
        self._session = None
        for found in list(self._running.values()):
            generation = found()
            if generation is not None:
                generation.let_go()
        self._forget_cached()
        if hasattr(self, "_model"):
            del self._model

    def _follow(self, generation: Closable) -> None:
        """Lets go of a generation's own memory when this is closed."""
        running, key = self._running, id(generation)
        running[key] = ref(generation, lambda _: running.pop(key, None))

    def __copy__(self) -> NoReturn:
        raise TypeError("two copies would share one context: use new_context()")

    def __deepcopy__(self, _: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError(
            "a loaded model cannot be pickled: load the file in the other process, and hand over save_state()"
        )

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

    def _stop_if_cancelled(self, since: int) -> None:
        """Raises Cancelled if cancel() was called since session.n_cancels was `since`."""
        if self.session.n_cancels != since:
            raise Cancelled("this was cancelled before its evaluation began")

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
