"""Expert 5, abstract: sequences, analogies, hidden rules and references."""

from __future__ import annotations

from random import Random
from string import ascii_uppercase

from .families import Domain, Item, fact, is_held_out, phrase, pick

DOMAIN = Domain("abstract")

NEXT = (
    "What comes next: {s}?",
    "What is next in the sequence {s}?",
    "Continue the pattern: {s}.",
    "Which comes next: {s}?",
)
WORDS = (
    "red", "blue", "green", "circle", "square", "star", "moon", "sun", "cat", "dog", "tree",
    "fish", "bird", "stone", "leaf", "cloud",
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("up", "down"), ("big", "small"), ("fast", "slow"), ("light", "dark"),
    ("open", "closed"), ("happy", "sad"), ("full", "empty"), ("young", "old"), ("high", "low"),
    ("wet", "dry"), ("hard", "soft"), ("early", "late"), ("near", "far"), ("rich", "poor"),
    ("left", "right"), ("day", "night"), ("loud", "quiet"), ("strong", "weak"), ("long", "short"),
)  # fmt: skip
OTHER_PAIRS = {
    "young": (("dog", "puppy"), ("cat", "kitten"), ("cow", "calf"), ("sheep", "lamb"),
              ("horse", "foal"), ("hen", "chick"), ("bear", "cub"), ("duck", "duckling")),
    "place": (("bird", "nest"), ("bee", "hive"), ("bear", "cave"), ("fish", "water"),
              ("spider", "web"), ("dog", "kennel"), ("horse", "stable"), ("king", "castle")),
    "part": (("hand", "finger"), ("foot", "toe"), ("tree", "leaf"), ("book", "page"),
             ("house", "room"), ("car", "wheel"), ("bird", "wing"), ("flower", "petal")),
    "use": (("pen", "write"), ("knife", "cut"), ("oven", "bake"), ("broom", "sweep"),
            ("key", "open"), ("needle", "sew"), ("spoon", "eat"), ("brush", "paint")),
}  # fmt: skip
OPPOSITE_ASK = (
    "What is the opposite of {a}?",
    "Give me the opposite of {a}.",
    "Which word is the opposite of {a}?",
    "What is the contrary of {a}?",
    "Name the opposite of {a}.",
)
THINGS = ("ball", "vase", "trophy", "book", "lamp", "clock", "statue", "guitar", "toy", "bottle")
HOLDERS = ("box", "bag", "suitcase", "drawer", "basket", "trunk", "case", "crate")


@DOMAIN.family(base=0.6, expert=1.2)
def arithmetic_sequence(rng: Random) -> Item:
    """Constant steps up or down."""
    step, start = rng.randint(2, 10), rng.randint(1, 30)
    if rng.random() < 0.3:
        start += 4 * step
        values = [start - i * step for i in range(5)]
        how = f"Each step subtracts {step}"
    else:
        values = [start + i * step for i in range(5)]
        how = f"Each step adds {step}"
    shown = ", ".join(map(str, values[:4]))
    return Item(
        [(phrase(rng, NEXT, s=shown), f"{how}, so the next is {values[4]}.")],
        ("sequence", values[0], values[1]),
    )


@DOMAIN.family(base=0.2, expert=0.5)
def geometric_sequence(rng: Random) -> Item:
    """Doubling, tripling and multiplying by ten."""
    factor = pick(rng, (2, 2, 3, 10))
    start = rng.randint(1, {2: 16, 3: 6, 10: 20}[factor])
    values = [start * factor**i for i in range(4)]
    shown = ", ".join(map(str, values[:3]))
    answer = f"Each step multiplies by {factor}, so the next is {values[3]}."
    return Item([(phrase(rng, NEXT, s=shown), answer)], ("geometric", factor, start))


@DOMAIN.family(base=1.0, expert=1.0)
def repeating_pattern(rng: Random) -> Item:
    """A period of two or three words, cut anywhere."""
    period = rng.sample(WORDS, pick(rng, (2, 3)))
    length = len(period) + rng.randint(2, 4)
    shown = [period[i % len(period)] for i in range(length)]
    answer = f"The pattern is {', '.join(period)}, so the next is {period[length % len(period)]}."
    return Item([(phrase(rng, NEXT, s=", ".join(shown)), answer)], ("repeat", length, *period))


@DOMAIN.family(base=0.2, expert=0.6)
def letter_sequence(rng: Random) -> Item:
    """Letters with a step of one to three; the key holds the phrasing."""
    step, form = rng.randint(1, 3), rng.randrange(len(NEXT))
    start = rng.randrange(26 - 3 * step)
    letters = [ascii_uppercase[start + i * step] for i in range(4)]
    how = ("Each letter follows", "Every second letter is taken", "Every third letter is taken")
    question = NEXT[form].format(s=", ".join(letters[:3]))
    answer = f"{how[step - 1]}, so the next is {letters[3]}."
    return Item([(question, answer)], ("letters", step, start, form))


@DOMAIN.family(base=0.3, expert=1.2)
def analogy(rng: Random) -> Item:
    """Two pairs under the same relation; held out by the two pairs."""
    kind = pick(rng, ("opposite", "opposite", *OTHER_PAIRS))
    pairs = OPPOSITES if kind == "opposite" else OTHER_PAIRS[kind]
    (a, b), (c, d) = rng.sample(pairs, 2)
    if kind == "opposite" and rng.random() < 0.5:
        a, b, c, d = b, a, d, c
    ask = (
        "{a} is to {b} as {c} is to what?",
        "{A} is to {b} as {c} is to what?",
        "Complete the analogy: {a} is to {b} as {c} is to what?",
    )
    question = phrase(rng, ask, A=a[0].upper() + a[1:], a=a, b=b, c=c)
    return Item([(question, f"{c} is to {d}.")], ("analogy", a, c))


@DOMAIN.family(base=0.15, expert=1.0)
def opposite(rng: Random) -> Item:
    """Opposites in both directions; the key holds the phrasing."""
    a, b = pick(rng, OPPOSITES)
    if rng.random() < 0.5:
        a, b = b, a
    return fact(rng, "opposite", a, OPPOSITE_ASK, f"The opposite of {a} is {b}.", a=a)


@DOMAIN.family(base=0.05, expert=0.4)
def opposite_follow_up(rng: Random) -> Item:
    """A second opposite, asked for briefly."""
    (a, b), (c, d) = rng.sample(OPPOSITES, 2)
    while is_held_out(("opposite", a, 0)):
        (a, b), (c, d) = rng.sample(OPPOSITES, 2)
    turns = [
        (f"What is the opposite of {a}?", f"The opposite of {a} is {b}."),
        (f"And of {c}?", f"The opposite of {c} is {d}."),
    ]
    return Item(turns, ("opposites", a, c))


@DOMAIN.family(base=0.8, expert=1.0)
def reverse(rng: Random) -> Item:
    """A list of words, backwards."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    ask = ("Reverse the list: {w}.", "Write these words in reverse order: {w}.")
    question = phrase(rng, ask, w=", ".join(words))
    return Item([(question, ", ".join(words[::-1]) + ".")], ("reverse", *words))


@DOMAIN.family(base=0.3, expert=0.8)
def hidden_rule(rng: Random) -> Item:
    """Two examples of a rule, one application."""
    x, y, z = rng.sample(range(2, 13), 3)
    if rng.random() < 0.5:
        k = rng.randint(2, 9)
        out, rule = (x + k, y + k, z + k), f"add {k}"
    else:
        k = rng.randint(2, 5)
        out, rule = (x * k, y * k, z * k), f"multiply by {k}"
    ask = (
        "{x} gives {a} and {y} gives {b}. What does {z} give?",
        "If {x} -> {a} and {y} -> {b}, what is {z} -> ?",
    )
    question = phrase(rng, ask, x=x, y=y, z=z, a=out[0], b=out[1])
    answer = f"The rule is: {rule}. So {z} gives {out[2]}."
    return Item([(question, answer)], ("rule", rule, x, y, z))


@DOMAIN.family(base=0.3, expert=0.8)
def reference(rng: Random) -> Item:
    """What 'it' refers to, decided by one adjective."""
    thing, holder = pick(rng, THINGS), pick(rng, HOLDERS)
    big = rng.random() < 0.5
    adjective = pick(rng, ("big", "large", "wide") if big else ("small", "narrow", "little"))
    verb = pick(rng, ("does not fit in", "did not fit into", "could not go into"))
    ask = (
        "The {t} {v} the {h} because it is too {a}. What is too {a}?",
        "The {t} {v} the {h}, since it is too {a}. What is too {a}?",
    )
    question = phrase(rng, ask, t=thing, v=verb, h=holder, a=adjective)
    answer = f"The {thing if big else holder} is too {adjective}."
    return Item([(question, answer)], ("reference", thing, holder, big))


@DOMAIN.family(base=0.4, expert=1.0)
def symbol_sum(rng: Random) -> Item:
    """Words that stand for numbers."""
    x, y = rng.sample(WORDS, 2)
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    ask = (
        "If {x} = {a} and {y} = {b}, what is {x} + {y}?",
        "Let {x} be {a} and {y} be {b}. What is {x} + {y}?",
    )
    answer = f"{x} + {y} = {a} + {b} = {a + b}."
    return Item([(phrase(rng, ask, x=x, y=y, a=a, b=b), answer)], ("symbols", a, b))
