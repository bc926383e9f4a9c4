"""Contexts on a loaded model: making one, and saving and loading what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from sardine_gguf import _native
from sardine_gguf.arguments import MAX_INT, integer, text, wrong_type
from sardine_gguf.output_file import check_output, replaced_file

KvType = Literal["f16", "f32", "q8_0"]
KV_TYPES = get_args(KvType)
ContextLength = int | Literal["auto"] | None

_AUTO = -1
_MODES = ("sparse", "gain", "off")


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
        TypeError: an option is of another type.
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
        for name, least, expected in (
            ("n_ctx", 0, "a number of tokens, 'auto', or None for the default"),
            ("n_batch", 1, "a number of tokens"),
            ("n_threads", 1, "a number of threads, or None for the default"),
        ):
            value = getattr(self, name)
            if value is not None and value != "auto":
                value = integer(name, value, expected, least=least, most=MAX_INT)
                object.__setattr__(self, name, value)  # a NumPy integer becomes an int
        if text("kv_type", self.kv_type) not in KV_TYPES:
            raise ValueError(f"kv_type is {self.kv_type!r}, expected {', '.join(KV_TYPES)}")
        if self.delta_mode is not None and text("delta_mode", self.delta_mode) not in _MODES:
            raise ValueError(f"delta_mode is {self.delta_mode!r}, expected {', '.join(_MODES)}")

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


Settings = tuple[Sequence[float], Sequence[float]]


def save_state(
    session: _native.Session,
    path: str | os.PathLike[str],
    own: Settings,
    inputs: Iterable[str | None] = (),
) -> None:
    """Writes a session's state to a file that appears complete or not at all, in place of any before.

    Args:
        own: the experts' (weights, bias) that a context goes back to after a call with others.
        inputs: files that must stay.

    Raises:
        FormatError: it is a folder, a device, a pipe or one of the inputs.
        OSError: it cannot be written.
        ValueError: the path is empty, or contains a null byte.
    """
    encoded_path(path)
    if not os.fspath(path):
        raise ValueError("the path of the state is empty: name a file, or leave it out for bytes")
    check_output(Path(path), [Path(p) for p in inputs if p])
    with replaced_file(Path(path)) as append:
        session.save(append, own)


def load_state(session: _native.Session, state: object) -> Settings:
    """Puts a saved state, bytes or the path of a file, in the place of what the session holds.

    Returns:
        what was saved as `own`.
    """
    if isinstance(state, bytes | bytearray | memoryview):
        return session.load_bytes(state)
    if isinstance(state, str | os.PathLike):
        return session.load_file(encoded_path(state))
    raise TypeError(f"a state is bytes or a path, not {type(state).__name__}")


def encoded_path(path: str | os.PathLike[str], name: str = "the path") -> bytes:
    """A path as the system takes it.

    Raises:
        TypeError: it is none.
        ValueError: it has a null byte, which would end it early.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise wrong_type(name, path, "a str or a path")
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("the path contains a null byte")
    return encoded
