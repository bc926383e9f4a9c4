"""Formats of strings that the grammar holds to; all others are annotations."""

from __future__ import annotations

from sardine_gguf.json_schema.expressions import DIGIT, Class, Expr, alt, chars, optional, rep, seq

_TWO = rep(DIGIT, 2, 2)


def _date() -> Expr:
    """Dates of the years 1000 to 9999 that exist."""
    from_1000 = Class(((0x31, 0x39),))
    year = seq(from_1000, rep(DIGIT, 3, 3))
    fours = alt(seq(chars("2468"), chars("048")), seq(chars("13579"), chars("26")))
    leap = alt(
        seq(from_1000, DIGIT, alt(seq("0", chars("48")), fours)),
        seq(fours, "00"),
    )
    to_28 = alt(seq("0", Class(((0x31, 0x39),))), seq("1", DIGIT), seq("2", Class(((0x30, 0x38),))))
    long = alt(seq("0", chars("13578")), seq("1", chars("02")))
    short = alt(seq("0", chars("469")), "11")
    day = alt(
        seq("02-", to_28),
        seq(short, "-", alt(to_28, "29", "30")),
        seq(long, "-", alt(to_28, "29", "30", "31")),
    )
    return alt(seq(year, "-", day), seq(leap, "-02-29"))


def _time() -> Expr:
    hour = alt(seq(chars("01"), DIGIT), seq("2", chars("0123")))
    minute = seq(chars("012345"), DIGIT)
    offset = alt("Z", seq(chars("+-"), hour, ":", minute))
    return seq(hour, ":", minute, ":", minute, optional(seq(".", rep(DIGIT, 1, 6))), offset)


def _uuid() -> Expr:
    hexadecimal = Class(((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)))
    parts = [rep(hexadecimal, n, n) for n in (8, 4, 4, 4, 12)]
    return seq(parts[0], *(x for part in parts[1:] for x in ("-", part)))


# The expression, and the fewest and the most characters.
FORMATS: dict[str, tuple[Expr, int, int]] = {
    "date": (_date(), 10, 10),
    "time": (_time(), 9, 21),
    "date-time": (seq(_date(), "T", _time()), 20, 32),
    "uuid": (_uuid(), 36, 36),
}
