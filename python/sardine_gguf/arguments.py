"""Checks of arguments: a wrong type or value is an error that names it, before anything is done."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_INT = 2**31 - 1


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def wrong_type(name: str, value: object, expected: str) -> TypeError:
    """The error for a value of another type."""
    return TypeError(f"{name} is {shown(value)} ({type(value).__name__}), expected {expected}")


def integer(
    name: str,
    value: Any,
    expected: str = "a whole number",
    *,
    least: int | None = None,
    most: int | None = None,
) -> int:
    """A whole number; NumPy's are, True and 2.0 are not.

    Raises:
        TypeError: it is none.
        ValueError: it is out of range.
    """
    if isinstance(value, bool):
        raise wrong_type(name, value, expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, expected) from None
    if (least is not None and number < least) or (most is not None and number > most):
        high = "" if most is None else f", at most {most}"
        low = "" if least is None else f", at least {least}"
        raise ValueError(f"{name} is {number}, expected {expected}{low}{high}")
    return number


def number(name: str, value: Any) -> float:
    """A finite number; NumPy's are, texts and True are not.

    Raises:
        TypeError: it is none.
        ValueError: it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong_type(name, value, "a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} is {shown(value)}, expected a finite number")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False. Raises TypeError: a text like "no" would count as True."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # NumPy's
        return bool(value)
    raise wrong_type(name, value, "True or False")


def text(name: str, value: Any) -> str:
    """A str. Raises TypeError."""
    if not isinstance(value, str):
        raise wrong_type(name, value, "a str")
    return value


def token_ids(name: str, value: Any, n_vocab: int | None = None) -> list[int]:
    """Token ids as a list.

    Raises:
        TypeError: bytes, which are text as often as numbers, or anything but whole numbers.
        ValueError: one is outside of a vocabulary of n_vocab.
    """
    expected = "token ids (a list of int)"
    if isinstance(value, bytes | bytearray | memoryview):
        raise wrong_type(
            name, value, f"a str or {expected}; bytes go through tokenize() or decode()"
        )
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise wrong_type(name, value, expected)
    found = [integer(f"{name}[{i}]", t, "a token id") for i, t in enumerate(value)]
    for i, token in enumerate(found):
        if n_vocab is not None and not 0 <= token < n_vocab:
            raise ValueError(
                f"{name}[{i}] is token id {token}, which is outside the vocabulary of {n_vocab}"
            )
    return found


def logit_bias(value: Any) -> dict[int, float]:
    """Biases by token id; digits are read as one, as in OpenAI's JSON.

    Raises:
        TypeError: no mapping, or a key or value of another type.
        ValueError: a key that is no token id, or a bias that is neither finite nor -inf.
    """
    if not isinstance(value, Mapping):
        raise wrong_type("logit_bias", value, "a mapping of token ids to biases")
    found: dict[int, float] = {}
    for key, bias in value.items():
        if isinstance(key, str):
            if not (key.isascii() and key.isdigit() and len(key) < 11):
                raise ValueError(f"logit_bias has the key {shown(key)}, expected a token id")
            token = int(key)
        else:
            token = integer("a key of logit_bias", key, "a token id")
        if isinstance(bias, bool) or not isinstance(bias, numbers.Real):
            raise wrong_type(f"logit_bias[{token}]", bias, "a number")
        biased = float(bias)
        if math.isnan(biased) or biased == math.inf:
            raise ValueError(f"logit_bias[{token}] is {bias}, expected a finite number or -inf")
        found[token] = biased
    return found


def stop_texts(value: Any) -> list[str]:
    """`stop` as a list.

    Raises:
        TypeError: it is neither a text nor a sequence of texts.
        ValueError: one is empty.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if isinstance(value, bytes | bytearray | Mapping) or not isinstance(value, Sequence):
        raise wrong_type("stop", value, "a str or a list of them")
    found = [text(f"stop[{i}]", s) for i, s in enumerate(value)]
    if "" in found:
        raise ValueError(f"stop[{found.index('')}] is '', expected a text that is not empty")
    return found
