"""Evaluating tokens in a context, and keeping what it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from sardine_gguf.arguments import token_ids
from sardine_gguf.context import load_state, save_state
from sardine_gguf.expert_methods import ExpertMethods
from sardine_gguf.expert_settings import ExpertSettings


class EvaluationMethods(ExpertMethods):
    """The context step by step."""

    def eval(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens to the context and returns the logits after each, float32 [n_tokens, n_vocab].

        Raises:
            ContextOverflow: they do not fit; nothing was evaluated.
            TypeError: they are no token ids.
            ValueError: there are none, or one is outside of the vocabulary.
            BusyError: another thread is evaluating.
        """
        ids = token_ids("tokens", tokens, self.model.hparams["n_vocab"])
        session = self.session
        claim = session.claim()
        self._experts.apply(session, claim)  # after a call with others, the context is emptied
        return session.eval(ids, claim=claim)

    def reset(self) -> None:
        """Empties the context."""
        self.session.truncate(0)

    def cancel(self) -> None:
        """Stops what this context does in another thread, which raises Cancelled there.

        That is an evaluation, a prompt's included, the making of a prompt or grammar, or a generation that
        has begun, even between two of its tokens. What begins later is not affected.
        """
        self.session.cancel()

    @overload
    def save_state(self) -> bytes: ...
    @overload
    def save_state(self, path: str | os.PathLike[str]) -> None: ...
    def save_state(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """The context's tokens, keys, values, last logits and `experts`, as bytes or to a file.

        `experts` are the context's own, also after a call with others, with which the tokens were computed.
        The file appears complete or not at all, and replaces any before; of a symbolic link, the file that
        it names. It fits this model file, `delta_mode` and `kv_type` only.

        Raises:
            FormatError: the path is a folder, a device, a pipe or the model's own file.
            OSError: the file cannot be written.
            ValueError: the path is empty.
            BusyError: another thread is evaluating.
        """
        own = self._experts.weights, self._experts.bias
        if path is None:
            return self.session.save_bytes(own)
        adapter = self.model.adapter
        inputs = [self.model.path] + ([adapter.path] if adapter else [])
        save_state(self.session, path, own, inputs)
        return None

    def load_state(self, state: bytes | bytearray | memoryview | str | os.PathLike[str]) -> None:
        """Takes the context from what `save_state` returned or wrote: what follows is the same, bit for bit.

        So `experts` become those of the state. On an error in the state the context is as before; where its
        reading fails, or is cancelled, halfway, it may be empty.

        Raises:
            FormatError: it is damaged, or of another model, `delta_mode` or `kv_type`.
            ContextOverflow: it has more tokens than n_ctx.
            OSError: the file cannot be read.
            BusyError: another thread is evaluating.
        """
        weights, bias = load_state(self.session, state)
        self._experts = ExpertSettings(tuple(weights), tuple(bias))
