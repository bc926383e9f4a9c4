"""A context as one generation uses it, until anything else does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sardine_gguf._native import Sampler, Session
from sardine_gguf.expert_settings import ExpertSettings
from sardine_gguf.open_model import OpenModel
from sardine_gguf.routes import Routes

# Called after each evaluation with its tokens and their routes, which have no layers where nothing is routed.
OnEvaluated = Callable[[list[int], Routes], None]

CLOSED = "the context was closed before the generation on it had ended"


class ClaimedContext:
    """A claim on a context. What claimed it before, and has not ended, ends with ContextChanged.

    Every call raises:
        ContextChanged: since the claim another call changed what the context holds, or claimed it.
        ValueError: the context was closed.
        BusyError: another thread is evaluating.
        Cancelled: cancel() was called since the claim.
    """

    def __init__(self, context: OpenModel, on_evaluated: OnEvaluated | None) -> None:
        self._context, self._on_evaluated = context, on_evaluated
        self._n_experts = len(context.model.experts["names"])
        self._since = context.session.n_cancels  # a cancel() from now on ends this use
        self._claim = context.session.claim()

    @property
    def _session(self) -> Session:
        if self._context.closed:
            raise ValueError(CLOSED)
        return self._context.session

    @property
    def tokens(self) -> list[int]:
        """What it holds."""
        return self._session.tokens

    def steer(self, settings: ExpertSettings) -> None:
        """Sets the experts; a change empties the context."""
        settings.apply(self._session, self._claim)

    def truncate(self, n: int) -> None:
        """Forgets all but the first n tokens."""
        self._session.truncate(n, self._claim)

    def decode(self, tokens: list[int]) -> None:
        """Appends tokens."""
        self._session.decode(tokens, self._since, self._claim)
        self._tell(tokens)

    def eval(self, tokens: list[int]) -> NDArray[np.float32]:
        """Appends tokens; the logits after each, [n_tokens, n_vocab]."""
        logits = self._session.eval(tokens, self._since, self._claim)
        self._tell(tokens)
        return logits

    def last_logits(self) -> NDArray[np.float32]:
        """Logits after the last token, [n_vocab]."""
        return self._session.last_logits(self._claim)

    def sample(self, sampler: Sampler, never: int | None) -> int:
        """A token drawn from them; `never` only if a grammar or biases leave no other."""
        return sampler.sample(self._session, self._claim, never)

    def _tell(self, tokens: list[int]) -> None:
        if self._on_evaluated is None:
            return
        ids, weights = self._session.routing(self._claim)
        if not ids.size:
            shape = (ids.shape[0], len(tokens), 0)
            ids, weights = np.empty(shape, np.int32), np.empty(shape, np.float32)
        self._on_evaluated(tokens, Routes(ids, weights, self._n_experts))
