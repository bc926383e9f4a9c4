"""What a question family is, and how its items are split into training and held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

T = TypeVar("T")
Turns = list[tuple[str, str]]

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Item:
    """A short dialogue, one (question, answer) per turn, and the facts that identify it.

    `key` decides the split. It names the content (numbers, names, words), not the phrasing, so
    that a held-out problem is never trained on in other words. Families that teach plain facts
    put the phrasing into the key: their held-out items are known facts asked in a new way.
    """

    turns: Turns
    key: tuple[object, ...]


@dataclass(frozen=True)
class Family:
    """A generator of items. `base` and `expert` are its shares in the two training mixtures."""

    name: str
    make: Callable[[Random], Item]
    base: float = 1.0
    expert: float = 1.0


@dataclass
class Domain:
    """A named collection of families; modules fill it through the `family` decorator."""

    name: str
    families: list[Family] = field(default_factory=list)

    def family(
        self, *, base: float = 1.0, expert: float = 1.0
    ) -> Callable[[Callable[[Random], Item]], Callable[[Random], Item]]:
        """Register the decorated generator under its function name."""

        def register(make: Callable[[Random], Item]) -> Callable[[Random], Item]:
            self.families.append(Family(make.__name__, make, base, expert))
            return make

        return register

    def sample(self, rng: Random, *, held_out: bool, mixture: str = "expert") -> Item:
        """Draw a family by its share in `mixture`, then an item of the wanted split."""
        weights = [getattr(f, mixture) for f in self.families]
        chosen = rng.choices(self.families, weights)[0]
        return sample_family(chosen, rng, held_out=held_out)


def is_held_out(key: tuple[object, ...]) -> bool:
    """Whether an item belongs to the held-out split; a pure function of its key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def sample_family(chosen: Family, rng: Random, *, held_out: bool) -> Item:
    """Draw items until one lies in the wanted split."""
    for _ in range(2000):
        item = chosen.make(rng)
        if is_held_out(item.key) == held_out:
            return item
    raise RuntimeError(f"family {chosen.name}: no item with held_out={held_out} in 2000 draws")


def pick(rng: Random, options: Sequence[T]) -> T:
    """One option, uniformly."""
    return options[rng.randrange(len(options))]


def phrase(rng: Random, templates: Sequence[str], **values: object) -> str:
    """One template, filled."""
    return pick(rng, templates).format(**values)


def fact(
    rng: Random, name: str, subject: str, templates: Sequence[str], answer: str, **values: object
) -> Item:
    """A plain fact: the key holds the phrasing, see `Item`."""
    index = rng.randrange(len(templates))
    return Item([(templates[index].format(**values), answer)], (name, subject, index))


WOMEN = ("Anna", "Dora", "Emma", "Gina", "Iris", "Kate", "Mia", "Nora", "Rosa", "Tina")
MEN = ("Tom", "Ben", "Carl", "Finn", "Hugo", "Jack", "Leo", "Otto", "Paul", "Sam")
NAMES = (*WOMEN, *MEN)
