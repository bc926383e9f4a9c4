"""Ranges of numbers as grammar expressions over decimal digits."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from sardine_gguf.json_schema.expressions import (
    DIGIT,
    EMPTY,
    NEVER,
    Class,
    Expr,
    Literal,
    alt,
    optional,
    rep,
    seq,
)

Bound = int | float
PLACES = 16  # of a fraction
LARGEST = 10**16 - 1  # where nothing else limits a number
MAX_BOUND = 10**300
_EXACT = Context(prec=1000)
_EXACT_INTEGERS = 2**53


def _digits(first: int, last: int) -> Expr:
    if first > last:
        return NEVER
    return Literal(str(first)) if first == last else Class(((0x30 + first, 0x30 + last),))


def _between(low: str, high: str) -> Expr:
    """Digit strings of one length from low to high."""
    if not low:
        return EMPTY
    n = len(low)
    if set(low) == {"0"} and set(high) == {"9"}:
        return rep(DIGIT, n, n)
    a, b = int(low[0]), int(high[0])
    if a == b:
        return seq(low[0], _between(low[1:], high[1:]))
    middle = _digits(a + 1, b - 1)
    return alt(
        seq(low[0], _between(low[1:], "9" * (n - 1))),
        *([seq(middle, rep(DIGIT, n - 1, n - 1))] if middle != NEVER else []),
        seq(high[0], _between("0" * (n - 1), high[1:])),
    )


def _natural(low: int, high: int) -> Expr:
    """Integers from low to high, neither below 0, without leading zeros."""
    out: list[Expr] = []
    first, last = len(str(low)), len(str(high))
    for n in range(first, last + 1):
        least = max(low, 10 ** (n - 1) if n > 1 else 0)
        most = min(high, 10**n - 1)
        if least > most:
            continue
        if n > 1 and first < n < last:
            if n == first + 1:
                out.append(seq(_digits(1, 9), rep(DIGIT, n - 1, last - 2)))
            continue
        out.append(_between(str(least), str(most)))
    return alt(*out)


def integer_between(low: int | None, high: int | None) -> Expr:
    """Integers from low to high, inclusive; without one, to 16 digits or ten times the other."""
    if low is None:
        low = -LARGEST if high is None or high > -LARGEST else high * 10
    if high is None:
        high = LARGEST if low < LARGEST else low * 10
    negative = seq("-", _natural(max(1, -high), -low)) if low < 0 and low <= high else NEVER
    positive = _natural(max(0, low), high) if high >= 0 and low <= high else NEVER
    return alt(negative, positive)


def _fraction(low: str, high: str) -> Expr:
    """Digit strings from low to high, not empty, where missing digits are zeros."""
    if not low:
        return NEVER
    n = len(low)
    if set(low) == {"0"} and set(high) in ({"0"}, {"9"}):
        return rep(DIGIT if high[0] == "9" else Literal("0"), 1, n)
    a, b = int(low[0]), int(high[0])

    def then(rest_low: str, rest_high: str) -> Expr:
        rest = _fraction(rest_low, rest_high)
        return optional(rest) if set(rest_low) <= {"0"} else rest

    if a == b:
        return seq(low[0], then(low[1:], high[1:]))
    middle = _digits(a + 1, b - 1)
    return alt(
        seq(low[0], then(low[1:], "9" * (n - 1))),
        seq(middle, then("0" * (n - 1), "9" * (n - 1))) if middle != NEVER else NEVER,
        seq(high[0], then("0" * (n - 1), high[1:])),
    )


def _split(value: Decimal) -> tuple[int, str]:
    whole = int(value)
    return whole, f"{int((value - whole).scaleb(PLACES, _EXACT)):0{PLACES}d}"


def _with_fraction(whole: int, low: str, high: str) -> Expr:
    fraction = seq(".", _fraction(low, high))
    return seq(str(whole), optional(fraction) if set(low) == {"0"} else fraction)


def _decimal(low: Decimal, high: Decimal) -> Expr:
    """Decimals from low to high, neither below 0."""
    (a, a_digits), (b, b_digits) = _split(low), _split(high)
    zeros, nines = "0" * PLACES, "9" * PLACES
    if a == b:
        return _with_fraction(a, a_digits, b_digits)
    middle: Expr = NEVER
    if a + 1 <= b - 1:
        middle = seq(_natural(a + 1, b - 1), optional(seq(".", rep(DIGIT, 1, PLACES))))
    return alt(_with_fraction(a, a_digits, nines), middle, _with_fraction(b, zeros, b_digits))


def number_between(low: Decimal | None, high: Decimal | None) -> Expr:
    """Decimals from low to high, inclusive, both with 16 places of a fraction at most."""
    limit = Decimal(LARGEST)
    if low is None:
        low = -limit if high is None or high > -limit else high * 10
    if high is None:
        high = limit if low < limit else low * 10
    if low > high:
        return NEVER
    negative = seq("-", _decimal(max(Decimal(0), -high), -low)) if low < 0 else NEVER
    positive = _decimal(max(Decimal(0), low), high) if high >= 0 else NEVER
    return alt(negative, positive)


def lower(bound: Bound, *, exclusive: bool) -> Decimal:
    """The least decimal of 16 places whose float64, and those of all above, are within a lower bound.

    Rounding to float64 keeps order, so decimals at or above a float64 become no less than it.
    """
    number: Bound = bound
    if exclusive:
        number = math.nextafter(float(bound), math.inf)
    elif isinstance(bound, int) and abs(bound) > _EXACT_INTEGERS:
        number = float(bound)
        number = math.nextafter(number, math.inf) if number < bound else number
    exact = Decimal(number) if isinstance(number, int) else Decimal(repr(number))
    return exact.quantize(Decimal(1).scaleb(-PLACES), ROUND_CEILING, _EXACT)


def upper(bound: Bound, *, exclusive: bool) -> Decimal:
    """The same of an upper bound."""
    exact = -lower(-bound, exclusive=exclusive)
    return exact.quantize(Decimal(1).scaleb(-PLACES), ROUND_FLOOR, _EXACT)


def integer_lower(bound: Bound, *, exclusive: bool) -> int:
    """The least integer within a lower bound."""
    return math.floor(bound) + 1 if exclusive else math.ceil(bound)


def integer_upper(bound: Bound, *, exclusive: bool) -> int:
    """The largest integer within an upper bound."""
    return math.ceil(bound) - 1 if exclusive else math.floor(bound)
