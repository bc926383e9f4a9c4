"""Contexts of any depth without evaluating their tokens: a saved state whose keys and values are made up.

What a token costs after n others depends on n and not on what their keys and values are: attention reads
each row once and multiplies it, whatever it holds. So a state of random normal values of the usual size
(a standard deviation of 1) stands for one that was evaluated; 4096 tokens of the 14B shape load in seconds
instead of a quarter of an hour. It is loaded as any saved state is, with its checks.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
from machine import state_hash
from numpy.typing import NDArray
from sardine_gguf import Sardine
from sardine_gguf.bench_measure import SardineRunner

_HEADER = struct.Struct("<8s6I4Q4I")  # StateHeader of cpp/src/session_state.cpp
_N_TOKENS = 9  # its place among the fields
_POOL = 1 << 20


def _rows(kv_type: str, nbytes: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    values = rng.standard_normal(_POOL, np.float32)
    if kv_type == "q8_0":
        from sardine_gguf import _native

        pool = _native.quantize(values.reshape(-1, 4096), "q8_0").reshape(-1)
    else:
        pool = values.astype({"f16": np.float16, "f32": np.float32}[kv_type]).view(np.uint8)
    return np.resize(pool, nbytes)


def made_up_state(model: Sardine, n_tokens: int, seed: int = 0) -> NDArray[np.uint8]:
    """The bytes of a state of n_tokens for this context (its mode and type), without logits.

    Raises:
        RuntimeError: the runtime's states are laid out in another way than this knows.
    """
    context = model.session
    before = context.n_tokens
    if before:
        context.truncate(0)
    empty = np.frombuffer(context.save_bytes(), np.uint8)
    fields: list[Any] = list(_HEADER.unpack_from(empty))
    if empty.nbytes != _HEADER.size + 8 or fields[0] != b"SARDSTAT" or fields[1] != 3:
        raise RuntimeError("saved states are of another version than benchmarks/made_up_state.py")
    if state_hash(empty[:-8]) != int.from_bytes(empty[-8:].tobytes(), "little"):
        raise RuntimeError("saved states have another checksum than cpp/src/hash.h")
    fields[_N_TOKENS] = n_tokens
    h = model.model.hparams
    values = h["n_layer"] * 2 * n_tokens * h["head_dim"] * h["n_head_kv"]
    row_bytes = {"f16": values * 2, "f32": values * 4, "q8_0": values // 32 * 34}[model.kv_type]
    rng = np.random.default_rng(seed)
    body = [
        np.frombuffer(_HEADER.pack(*fields), np.uint8),
        rng.integers(0, model.n_vocab, n_tokens, np.int32).view(np.uint8),
        _rows(model.kv_type, row_bytes, rng),
    ]
    state = np.concatenate([*body, np.zeros(8, np.uint8)])
    state[-8:] = np.frombuffer(state_hash(state[:-8]).to_bytes(8, "little"), np.uint8)
    return state


def fill_made_up(runner: SardineRunner, depth: int, source: random.Random) -> None:
    """As bench_measure.fill; a context that is deep enough already is cut."""
    context = runner.model.session
    if context.n_tokens < depth:
        context.load_bytes(made_up_state(runner.model, depth, source.getrandbits(32)).data)
    runner.truncate(depth)
