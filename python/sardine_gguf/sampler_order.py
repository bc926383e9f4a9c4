"""The order of the samplers: names as llama.cpp's --samplers and general.sampling.sequence spell them."""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_ORDER = ("penalties", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")

# Samplers of llama.cpp that are off unless an option turns them on, and no file and no option here can.
_OFF = ("dry", "top_n_sigma")
_MISSING = ("infill", "adaptive_p")
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}
_LONGEST = 32


def _spellings() -> dict[str, str]:
    names: dict[str, str] = {}
    for name in (*DEFAULT_ORDER, *_OFF, *_MISSING):
        names |= {name: name, name.replace("_", "-"): name, name.replace("_", ""): name}
    return names | _ALIASES


_SPELLINGS = _spellings()


def sampler_order(names: str | Sequence[str]) -> tuple[str, ...]:
    """llama.cpp's names of the samplers in the order in which they are applied; those left out are not.

    Args:
        names: a list, or a text with ; between them. An empty text is the default order, as in llama.cpp.

    Raises:
        ValueError: one is not known or not supported.
        TypeError: they are no names.
    """
    if isinstance(names, str):
        if not names.strip():
            return DEFAULT_ORDER
        names = [n for n in names.split(";") if n.strip()]
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise TypeError("samplers must be names, in a list or in a text with ; between them")
    if len(names) > _LONGEST:
        raise ValueError(f"samplers has {len(names)} names, expected at most {_LONGEST}")
    found = []
    for given in names:
        name = _SPELLINGS.get(given.strip().lower())
        if name is None or name in _MISSING:
            raise ValueError(
                f"samplers names {given.strip()[:40]!r}, which is "
                f"{'not known' if name is None else 'not supported'}: expected {', '.join(DEFAULT_ORDER)}"
            )
        if name not in _OFF:
            found.append(name)
    return tuple(found)
