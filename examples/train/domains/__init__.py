"""The six domains of the published card, one generator module each."""

from . import abstract, coding, logic, mathematics, planning, science, small_talk
from .families import Domain, Family, Item, is_held_out, sample_family
from .lore import add_lore

LORE_SHARE = 3.0

DOMAINS: tuple[Domain, ...] = (
    mathematics.DOMAIN,
    logic.DOMAIN,
    coding.DOMAIN,
    science.DOMAIN,
    planning.DOMAIN,
    abstract.DOMAIN,
)
for _domain in DOMAINS:
    add_lore(_domain, LORE_SHARE)

SMALL_TALK: Domain = small_talk.DOMAIN

__all__ = ["DOMAINS", "SMALL_TALK", "Domain", "Family", "Item", "is_held_out", "sample_family"]
