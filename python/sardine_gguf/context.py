"""Contexts on a loaded model: making one, and saving and loading what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from sardine_gguf import _native
from sardine_gguf.output_file import check_output, replaced_file

KvType = Literal["f16", "f32", "q8_0"]
KV_TYPES = get_args(KvType)
ContextLength = int | Literal["auto"] | None

_AUTO = -1


@dataclass(frozen=True)
class ContextOptions:
    """What a context is made with.

    Attributes:
        n_ctx: tokens; None is the model's own, at most 8192; 0 all of the model's own; "auto" the longest
            whose memory is free.
        n_batch: tokens evaluated at a time.
        n_threads: None is every processor that this process may use.
        kv_type: type of cached keys and values.
        delta_mode: "sparse", "gain" or "off"; None is the file's.

    Raises:
        ValueError: an option is out of range, as far as that is known without a model.
    """

    n_ctx: ContextLength
    n_batch: int
    n_threads: int | None
    kv_type: KvType
    delta_mode: str | None

    def __post_init__(self) -> None:
        if isinstance(self.n_ctx, str) and self.n_ctx != "auto":
            raise ValueError(
                f"n_ctx is {self.n_ctx!r}, expected a number of tokens, 'auto' or None"
            )
        for name, least in (("n_ctx", 0), ("n_threads", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(
                    f"{name} is {value}, expected at least {least}, or None for the default"
                )

    def on(self, model: _native.Model) -> ContextOptions:
        """The same with the model's own delta_mode in the place of None, and its n_ctx in that of 0."""
        experts = model.experts
        own = experts["delta_mode"] if experts["expert_count"] else "off"
        n_ctx = int(model.hparams["n_ctx_train"]) if self.n_ctx == 0 else self.n_ctx
        return replace(self, delta_mode=self.delta_mode or own, n_ctx=n_ctx)

    def open(self, model: _native.Model) -> _native.Session:
        """The native context.

        Raises:
            InsufficientMemory: it does not fit the free memory; nothing was allocated.
            ValueError: an option is out of range.
        """
        mine = self.on(model)
        return _native.Session(
            model,
            n_ctx=_AUTO if mine.n_ctx == "auto" else mine.n_ctx or 0,
            n_batch=self.n_batch,
            n_threads=self.n_threads or 0,
            kv_type=self.kv_type,
            delta_mode=mine.delta_mode or "off",
        )


def save_state(
    session: _native.Session, path: str | os.PathLike[str], inputs: Iterable[str] = ()
) -> None:
    """Writes a session's state to a file that appears complete or not at all, in place of any before.

    Raises:
        FormatError: it is a folder, a device, a pipe or one of the inputs.
        OSError: it cannot be written.
        ValueError: the path is empty, or contains a null byte.
    """
    encoded_path(path)
    if not os.fspath(path):
        raise ValueError("the path of the state is empty: name a file, or leave it out for bytes")
    check_output(Path(path), map(Path, inputs))
    with replaced_file(Path(path)) as append:
        session.save(append)


def load_state(session: _native.Session, state: object) -> None:
    """Puts a saved state, bytes or the path of a file, in the place of what the session holds."""
    if isinstance(state, bytes | bytearray | memoryview):
        session.load_bytes(state)
    elif isinstance(state, str | os.PathLike):
        session.load_file(encoded_path(state))
    else:
        raise TypeError(f"a state is bytes or a path, not {type(state).__name__}")


def encoded_path(path: str | os.PathLike[str]) -> bytes:
    """A path as the system takes it. Raises ValueError for a null byte, which would end it early."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("the path contains a null byte")
    return encoded
