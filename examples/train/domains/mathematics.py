"""Expert 0, math: worked arithmetic and word problems."""

from __future__ import annotations

from random import Random

from .families import NAMES, Domain, Item, is_held_out, phrase, pick

DOMAIN = Domain("math")

THINGS = (
    "apples", "pears", "books", "coins", "cards", "stamps", "pens", "eggs", "shells", "marbles",
    "cookies", "stickers",
)  # fmt: skip
PERCENT_OF = (
    "What is {p}% of {n}?",
    "What is {p}% of {n}?",
    "Calculate {p}% of {n}.",
    "How much is {p}% of {n}?",
    "Find {p} percent of {n}.",
    "What is {p} percent of {n}?",
)
SUM = ("What is {a} + {b}?", "Calculate {a} + {b}.", "Add {a} and {b}.", "What is {a} plus {b}?")


def percent_steps(p: int, n: int) -> tuple[str, int]:
    """Worked steps for p % of n, p a multiple of 5, and the value."""
    tenth = n // 10
    if p == 50:
        return f"Half of {n} is {n // 2}", n // 2
    if p == 25:
        return f"A quarter of {n} is {n // 4}", n // 4
    if p == 10:
        return f"{n} / 10 = {tenth}", tenth
    if p == 5:
        return f"10% of {n} is {tenth}, half of it is {tenth // 2}", tenth // 2
    tens, half = p // 10, tenth // 2
    if p % 10 == 0:
        return f"10% of {n} is {tenth}, {tens} x {tenth} = {tens * tenth}", tens * tenth
    value = tens * tenth + half
    return f"{tens}0% of {n} is {tens * tenth}, 5% is {half}", value


def percent_pair(rng: Random) -> tuple[int, int]:
    """A percentage and a number that keep every step whole."""
    p = pick(rng, (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 75, 80, 90))
    n = 20 * rng.randint(1, 10) if rng.random() < 0.7 else 100 * rng.randint(1, 10)
    return p, n


def percent_answer(p: int, n: int) -> str:
    """The worked answer, ending in the value."""
    steps, value = percent_steps(p, n)
    return f"{steps}, so {p}% of {n} is {value}."


def sum_steps(a: int, b: int) -> str:
    """a + b with tens and units apart when both have two digits."""
    if a < 10 or b < 10 or a % 10 == 0 or b % 10 == 0:
        return f"{a} + {b} = {a + b}"
    tens, units = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a} + {b} = {tens} + {units} = {a + b}"


def difference_steps(a: int, b: int) -> str:
    """a - b, tens first."""
    if b < 10 or b % 10 == 0:
        return f"{a} - {b} = {a - b}"
    tens = b // 10 * 10
    return f"{a} - {tens} = {a - tens}, {a - tens} - {b % 10} = {a - b}"


def product_steps(a: int, b: int) -> str:
    """a x b for a one-digit a."""
    if b < 13 or b % 10 == 0:
        return f"{a} x {b} = {a * b}"
    tens, units = b // 10 * 10, b % 10
    return f"{a} x {b} = {a * tens} + {a * units} = {a * b}"


@DOMAIN.family(base=1.0, expert=6.0)
def percent(rng: Random) -> Item:
    """The main family: p % of n."""
    p, n = percent_pair(rng)
    return Item([(phrase(rng, PERCENT_OF, p=p, n=n), percent_answer(p, n))], ("percent", p, n))


@DOMAIN.family(base=0.2, expert=0.8)
def percent_follow_up(rng: Random) -> Item:
    """A second percentage of the same number; held out by the second pair."""
    p, n = percent_pair(rng)
    while is_held_out(("percent", p, n)):
        p, n = percent_pair(rng)
    q = pick(rng, (10, 15, 20, 25, 30, 50))
    first = (phrase(rng, PERCENT_OF, p=p, n=n), percent_answer(p, n))
    ask = phrase(rng, ("And {q}%?", "And {q}% of it?", "What about {q}%?"), q=q)
    return Item([first, (ask, percent_answer(q, n))], ("percent", q, n))


@DOMAIN.family(base=0.2, expert=0.2)
def discount(rng: Random) -> Item:
    """A price after p % off; shares its key with `percent`."""
    p, n = pick(rng, (5, 10, 15, 20, 25, 30, 50)), 20 * rng.randint(1, 10)
    thing = pick(rng, ("shirt", "lamp", "chair", "bag", "coat", "phone"))
    question = phrase(
        rng,
        (
            "A {t} costs {n} dollars and is {p}% off. What is the new price?",
            "A {t} costs {n} dollars. What does it cost with {p}% off?",
        ),
        t=thing, n=n, p=p,
    )  # fmt: skip
    steps, value = percent_steps(p, n)
    answer = f"{steps}. {n} - {value} = {n - value}, so the {thing} costs {n - value} dollars."
    return Item([(question, answer)], ("percent", p, n))


@DOMAIN.family(base=1.2, expert=0.6)
def addition(rng: Random) -> Item:
    """Two numbers below 100."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    return Item([(phrase(rng, SUM, a=a, b=b), sum_steps(a, b) + ".")], ("add", a, b))


@DOMAIN.family(base=0.6, expert=0.3)
def subtraction(rng: Random) -> Item:
    """A non-negative difference below 100."""
    a = rng.randint(5, 99)
    b = rng.randint(1, a - 1)
    ask = ("What is {a} - {b}?", "Calculate {a} - {b}.", "What is {a} minus {b}?")
    return Item([(phrase(rng, ask, a=a, b=b), difference_steps(a, b) + ".")], ("sub", a, b))


@DOMAIN.family(base=1.0, expert=1.2)
def multiplication(rng: Random) -> Item:
    """One digit times up to two digits."""
    a = rng.randint(2, 9)
    b = rng.randint(2, 12) if rng.random() < 0.5 else rng.randint(13, 29)
    ask = ("What is {a} x {b}?", "What is {a} times {b}?", "Calculate {a} x {b}.")
    return Item([(phrase(rng, ask, a=a, b=b), product_steps(a, b) + ".")], ("mul", a, b))


@DOMAIN.family(base=0.6, expert=0.6)
def word_problem(rng: Random) -> Item:
    """Gains, losses and equal groups."""
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randint(2, 30), rng.randint(2, 30)
        ask = (
            "{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
            "{name} had {a} {thing} and found {b} more. How many {thing} does {name} have?",
        )
        answer = f"{sum_steps(a, b)}, so {name} has {a + b} {thing}."
    elif kind == 1:
        a = rng.randint(5, 40)
        b = rng.randint(2, a - 1)
        ask = (
            "{name} has {a} {thing} and gives away {b}. How many {thing} are left?",
            "{name} had {a} {thing} and lost {b}. How many {thing} does {name} have left?",
        )
        answer = f"{difference_steps(a, b)}, so {name} has {a - b} {thing} left."
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 12)
        ask = (
            "{name} has {a} boxes with {b} {thing} each. How many {thing} are there?",
            "{name} buys {a} bags of {b} {thing}. How many {thing} is that?",
        )
        answer = f"{product_steps(a, b)}, so there are {a * b} {thing}."
    question = phrase(rng, ask, name=name, thing=thing, a=a, b=b)
    return Item([(question, answer)], ("word", kind, a, b))


@DOMAIN.family(base=0.2, expert=0.8)
def rectangle(rng: Random) -> Item:
    """Area or perimeter of a rectangle."""
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    if rng.random() < 0.5:
        ask = (
            "What is the area of a rectangle of {a} by {b} meters?",
            "A garden is {a} meters long and {b} meters wide. What is its area?",
        )
        answer = f"{a} x {b} = {a * b}, so the area is {a * b} square meters."
        key: tuple[object, ...] = ("area", a, b)
    else:
        ask = (
            "What is the perimeter of a rectangle of {a} by {b} meters?",
            "A garden is {a} meters long and {b} meters wide. What is its perimeter?",
        )
        total = 2 * (a + b)
        answer = f"2 x ({a} + {b}) = 2 x {a + b} = {total}, so the perimeter is {total} meters."
        key = ("perimeter", a, b)
    return Item([(phrase(rng, ask, a=a, b=b), answer)], key)


@DOMAIN.family(base=0.3, expert=1.0)
def equation(rng: Random) -> Item:
    """x + a = b, x - a = b or a x = b."""
    kind, x, a = rng.randrange(3), rng.randint(2, 12), rng.randint(2, 12)
    if kind == 0:
        text, steps = f"x + {a} = {x + a}", f"x = {x + a} - {a} = {x}"
    elif kind == 1:
        text, steps = f"x - {a} = {x}", f"x = {x} + {a} = {x + a}"
    else:
        text, steps = f"{a}x = {a * x}", f"x = {a * x} / {a} = {x}"
    ask = ("Solve {e}.", "What is x if {e}?", "Solve for x: {e}.", "Find x: {e}.")
    return Item([(phrase(rng, ask, e=text), steps + ".")], ("equation", kind, x, a))


@DOMAIN.family(base=0.2, expert=0.2)
def average(rng: Random) -> Item:
    """The mean of two numbers with a whole result."""
    mean, d = rng.randint(3, 20), rng.randint(0, 6)
    a, b = max(0, mean - d), mean + (mean - max(0, mean - d))
    ask = ("What is the average of {a} and {b}?", "Find the mean of {a} and {b}.")
    answer = f"({a} + {b}) / 2 = {a + b} / 2 = {mean}, so the average is {mean}."
    return Item([(phrase(rng, ask, a=a, b=b), answer)], ("average", a, b))
