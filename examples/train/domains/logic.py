"""Expert 1, logic: syllogisms, orderings, conditionals, elimination."""

from __future__ import annotations

from random import Random

from .families import NAMES, WOMEN, Domain, Item, phrase, pick

DOMAIN = Domain("logic")

KINDS = (
    "bloops", "razzies", "lazzies", "wugs", "zorps", "glims", "daxes", "tovas", "mips", "fleps",
    "nargs", "quigs", "vons", "plims", "snorks", "yibs",
)  # fmt: skip
RELATIONS = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("stronger", "weaker", "strongest", "weakest"),
)
CONDITIONALS = (
    ("it rains", "the street is wet", "it does not rain", "the street is not wet"),
    ("the alarm rings", "the dog barks", "the alarm does not ring", "the dog does not bark"),
    ("the lamp is on", "the room is bright", "the lamp is off", "the room is not bright"),
    ("the sun shines", "the cat sleeps", "the sun does not shine", "the cat does not sleep"),
    ("the bell rings", "the class ends", "the bell does not ring", "the class does not end"),
    ("the shop is open", "the sign is lit", "the shop is closed", "the sign is not lit"),
    ("the tank is empty", "the car stops", "the tank is not empty", "the car does not stop"),
    ("the wind blows", "the flag moves", "the wind does not blow", "the flag does not move"),
    ("it is Sunday", "the bank is closed", "it is not Sunday", "the bank is not closed"),
    ("the key turns", "the door opens", "the key does not turn", "the door does not open"),
)
GROUPS = {
    "fruits": ("apple", "pear", "plum", "banana", "cherry", "lemon"),
    "animals": ("dog", "cat", "horse", "cow", "sheep", "tiger"),
    "colors": ("red", "blue", "green", "yellow", "purple", "white"),
    "tools": ("hammer", "saw", "drill", "wrench", "pliers", "chisel"),
    "vehicles": ("car", "bus", "train", "truck", "bicycle", "boat"),
    "furniture": ("chair", "table", "sofa", "bed", "desk", "shelf"),
}
OBJECTS = ("key", "coin", "ring", "letter", "map", "ball", "watch", "book")
PLACES = ("box", "bag", "drawer", "car", "kitchen", "garden", "desk", "jar", "chest", "cupboard")


@DOMAIN.family(base=0.4, expert=1.0)
def syllogism(rng: Random) -> Item:
    """Valid chains, invalid converses and exclusions over made-up kinds."""
    a, b, c = rng.sample(KINDS, 3)
    kind = rng.randrange(4)
    if kind == 0:
        facts, asked = f"All {a} are {b}. All {b} are {c}.", f"Are all {a} {c}?"
        answer = f"Yes. All {a} are {b} and all {b} are {c}, so all {a} are {c}."
    elif kind == 1:
        facts, asked = f"All {a} are {b}.", f"Are all {b} {a}?"
        answer = f"Not necessarily. All {a} are {b}, but some {b} may not be {a}."
    elif kind == 2:
        facts, asked = f"All {a} are {b}. No {b} are {c}.", f"Are any {a} {c}?"
        answer = f"No. All {a} are {b} and no {b} are {c}, so no {a} are {c}."
    else:
        facts, asked = f"All {a} are {c}. All {b} are {c}.", f"Are all {a} {b}?"
        answer = f"Not necessarily. Both are {c}, but {a} need not be {b}."
    ask = ("{f} {q}", "{f} {q}", "Suppose this: {f} {q}", "Given: {f} {q}")
    return Item([(phrase(rng, ask, f=facts, q=asked), answer)], ("syllogism", kind, a, b, c))


def comparison_facts(rng: Random, people: list[str], more: str, less: str) -> str:
    """Two statements that order three people from the most to the least, in any form."""
    pairs = [(people[0], people[1]), (people[1], people[2])]
    rng.shuffle(pairs)
    said = [f"{x} is {more} than {y}." if rng.random() < 0.6 else f"{y} is {less} than {x}."
            for x, y in pairs]  # fmt: skip
    return " ".join(said)


@DOMAIN.family(base=0.8, expert=1.4)
def comparison(rng: Random) -> Item:
    """Three people ordered by one relation."""
    people = rng.sample(NAMES, 3)
    more, less, most, least = pick(rng, RELATIONS)
    facts = comparison_facts(rng, people, more, less)
    top = rng.random() < 0.5
    asked, who = (most, people[0]) if top else (least, people[2])
    answer = f"The order is {people[0]}, {people[1]}, {people[2]}, so {who} is the {asked}."
    question = phrase(rng, ("{f} Who is the {q}?", "{f} Who is {q}?"), f=facts, q=asked)
    return Item([(question, answer)], ("comparison", *people))


@DOMAIN.family(base=0.1, expert=0.5)
def comparison_follow_up(rng: Random) -> Item:
    """Asks for the other end of the order in a second turn."""
    people = rng.sample(NAMES, 3)
    more, less, most, least = pick(rng, RELATIONS)
    facts = comparison_facts(rng, people, more, less)
    order = f"The order is {people[0]}, {people[1]}, {people[2]}, so"
    first = (f"{facts} Who is the {most}?", f"{order} {people[0]} is the {most}.")
    ask = pick(rng, (f"And who is the {least}?", f"Who is the {least}?"))
    second = (ask, f"{order} {people[2]} is the {least}.")
    return Item([first, second], ("comparison", *people))


@DOMAIN.family(base=0.2, expert=1.0)
def conditional(rng: Random) -> Item:
    """Modus ponens, modus tollens and the two fallacies; the key holds the phrasing."""
    p, q, not_p, not_q = pick(rng, CONDITIONALS)
    kind, form = rng.randrange(4), rng.randrange(5)
    seen, asked, answer = (
        (p, q, f"Yes. If {p}, {q}."),
        (not_q, p, f"No. If {p}, {q}, but {not_q}."),
        (q, p, f"Not necessarily. There may be another reason why {q}."),
        (not_p, q, f"Not necessarily. The rule only says what happens if {p}."),
    )[kind]
    question = (
        f"If {p}, {q}. Now {seen}. Does it follow that {asked}?",
        f"Rule: if {p}, then {q}. Fact: {seen}. Is it true that {asked}?",
        f"If {p}, then {q}. We know that {seen}. Can we say that {asked}?",
        f"Whenever {p}, {q}. Today {seen}. Does it follow that {asked}?",
        f"{q[0].upper()}{q[1:]} if {p}. We see that {seen}. Is it true that {asked}?",
    )[form]
    return Item([(question, answer)], ("conditional", p, kind, form))


@DOMAIN.family(base=1.0, expert=1.0)
def elimination(rng: Random) -> Item:
    """A thing is in one of two or three places, all but one ruled out."""
    thing = pick(rng, OBJECTS)
    places = rng.sample(PLACES, pick(rng, (2, 3)))
    where = rng.randrange(len(places))
    listed = ", the ".join(places[:-1]) + " or the " + places[-1]
    outs = " and not in the ".join(x for i, x in enumerate(places) if i != where)
    ask = (
        "The {t} is in the {l}. It is not in the {o}. Where is the {t}?",
        "The {t} must be in the {l}, but it is not in the {o}. Where is it?",
    )
    question = phrase(rng, ask, t=thing, l=listed, o=outs)
    return Item([(question, f"The {thing} is in the {places[where]}.")], ("place", thing, *places))


@DOMAIN.family(base=0.5, expert=1.0)
def odd_one_out(rng: Random) -> Item:
    """Three words of one group and one of another."""
    group, other = rng.sample(sorted(GROUPS), 2)
    words = rng.sample(GROUPS[group], 3)
    stranger = pick(rng, GROUPS[other])
    shown = [*words, stranger]
    rng.shuffle(shown)
    ask = (
        "Which word is the odd one out: {w}?",
        "Which one does not belong: {w}?",
        "Find the odd one out: {w}.",
    )
    question = phrase(rng, ask, w=", ".join(shown))
    answer = f"{stranger}, because the others are {group}."
    return Item([(question, answer)], ("odd", *sorted(words), stranger))


@DOMAIN.family(base=1.0, expert=1.0)
def line_position(rng: Random) -> Item:
    """Who stands where in a line of four."""
    people = rng.sample(NAMES, 4)
    kind = rng.randrange(6)
    asked, who = (
        ("first", people[0]),
        ("second", people[1]),
        ("third", people[2]),
        ("last", people[3]),
        (f"right behind {people[1]}", people[2]),
        (f"right before {people[1]}", people[0]),
    )[kind]
    ask = (
        "{p} stand in a line in this order. Who is {q}?",
        "The line is {p}. Who is {q}?",
    )
    return Item(
        [(phrase(rng, ask, p=", ".join(people), q=asked), f"{who} is {asked}.")],
        ("line", kind, *people),
    )


@DOMAIN.family(base=0.2, expert=1.0)
def boolean(rng: Random) -> Item:
    """(x op y) op z, evaluated in two steps."""
    x, y, z = (pick(rng, ("true", "false")) for _ in range(3))
    op1, op2 = pick(rng, ("and", "or")), pick(rng, ("and", "or"))
    form = rng.randrange(4)

    def evaluate(a: str, op: str, b: str) -> str:
        values = (a == "true", b == "true")
        return "true" if (all(values) if op == "and" else any(values)) else "false"

    inner = evaluate(x, op1, y)
    outer = evaluate(inner, op2, z)
    question = (
        f"What is ({x} {op1} {y}) {op2} {z}?",
        f"Evaluate ({x} {op1} {y}) {op2} {z}.",
        f"Is ({x} {op1} {y}) {op2} {z} true or false?",
        f"What is the value of ({x} {op1} {y}) {op2} {z}?",
    )[form]
    answer = f"{x} {op1} {y} is {inner}, {inner} {op2} {z} is {outer}, so it is {outer}."
    return Item([(question, answer)], ("boolean", x, op1, y, op2, z, form))


@DOMAIN.family(base=0.3, expert=0.6)
def kinship(rng: Random) -> Item:
    """Two parent links make a grandparent; two siblings share a parent."""
    a, b, c = rng.sample(NAMES, 3)
    kind = rng.randrange(2)
    if kind == 0:
        parent, other = ("mother" if name in WOMEN else "father" for name in (a, b))
        facts = [f"{a} is the {parent} of {b}.", f"{b} is the {other} of {c}."]
        rng.shuffle(facts)
        question = " ".join(facts) + f" Who is the grand{parent} of {c}?"
        answer = f"{a} is the {parent} of {b} and {b} is the {other} of {c}, so it is {a}."
    else:
        parent = "mother" if c in WOMEN else "father"
        sibling = "sister" if a in WOMEN else "brother"
        question = f"{a} is the {sibling} of {b}. {c} is the {parent} of {b}. "
        question += f"Who is the {parent} of {a}?"
        answer = f"{a} and {b} have the same {parent}, so it is {c}."
    return Item([(question, answer)], ("kinship", kind, a, b, c))
