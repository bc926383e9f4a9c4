"""Expert 4, planning: times, orders of work, budgets and step lists."""

from __future__ import annotations

from random import Random

from .families import Domain, Item, fact, phrase, pick

DOMAIN = Domain("planning")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TASKS = (
    "reading", "cooking", "shopping", "cleaning", "painting", "sanding", "packing", "washing",
    "writing", "sorting", "baking", "mowing", "fixing", "testing", "sewing", "digging",
)  # fmt: skip
TRIPS = ("train", "bus", "flight", "ferry", "meeting", "film", "class")
ITEMS = ("lamp", "book", "bag", "ball", "shirt", "cup", "pan", "hat", "clock", "plant")
RECIPES = {
    "make tea": ("Boil water", "Put tea in a cup", "Pour the water", "Wait and drink"),
    "make coffee": ("Grind the beans", "Boil water", "Pour it over the coffee", "Serve"),
    "bake bread": ("Mix flour and water", "Knead the dough", "Let it rise", "Bake it"),
    "plant a tree": ("Dig a hole", "Put in the tree", "Fill in the soil", "Water it"),
    "wash a car": ("Rinse the car", "Apply soap", "Scrub it", "Rinse and dry it"),
    "write a letter": ("Take paper", "Write the text", "Put it in an envelope", "Mail it"),
    "change a tire": ("Loosen the nuts", "Lift the car", "Swap the wheel", "Tighten the nuts"),
    "boil an egg": ("Boil water", "Add the egg", "Wait eight minutes", "Cool the egg"),
    "paint a wall": ("Cover the floor", "Clean the wall", "Apply paint", "Let it dry"),
    "plan a party": ("Set a date", "Invite guests", "Buy food", "Decorate the room"),
    "pack for a trip": ("Make a list", "Gather the clothes", "Fill the bag", "Check the list"),
    "study for a test": ("Gather notes", "Make a schedule", "Practice questions", "Rest well"),
    "fix a bug": ("Reproduce the bug", "Find the cause", "Change the code", "Run the tests"),
    "make a salad": ("Wash the greens", "Chop them", "Add dressing", "Toss and serve"),
}
RECIPE_ASK = (
    "How do I {a}?",
    "What are the steps to {a}?",
    "Make a plan to {a}.",
    "I want to {a}. What should I do?",
    "Give me the steps to {a}.",
    "Help me {a}.",
)


def clock(minutes: int) -> str:
    """Minutes since midnight as h:mm."""
    return f"{minutes // 60}:{minutes % 60:02d}"


def numbered(steps: tuple[str, ...]) -> str:
    """'1. First. 2. Second.'"""
    return " ".join(f"{i}. {step}." for i, step in enumerate(steps, 1))


@DOMAIN.family(base=0.4, expert=1.3)
def arrival(rng: Random) -> Item:
    """Start plus whole hours or quarters of an hour."""
    start = 60 * rng.randint(6, 16) + 15 * rng.randrange(4)
    hours = rng.random() < 0.5
    length = 60 * rng.randint(1, 5) if hours else 15 * rng.randint(1, 3)
    said = f"{length // 60} hour{'s' if length > 60 else ''}" if hours else f"{length} minutes"
    trip = pick(rng, TRIPS)
    ask = (
        "The {t} starts at {s} and takes {l}. When does it end?",
        "A {t} starts at {s} and lasts {l}. When is it over?",
    )
    end = clock(start + length)
    answer = f"{clock(start)} plus {said} is {end}, so it ends at {end}."
    question = phrase(rng, ask, t=trip, s=clock(start), l=said)
    return Item([(question, answer)], ("arrival", start, length))


@DOMAIN.family(base=0.2, expert=0.4)
def departure(rng: Random) -> Item:
    """When to leave in order to be there in time."""
    goal = 60 * rng.randint(8, 20) + 15 * rng.randrange(4)
    hours = rng.random() < 0.4
    length = 60 * rng.randint(1, 3) if hours else 15 * rng.randint(1, 3)
    said = f"{length // 60} hour{'s' if length > 60 else ''}" if hours else f"{length} minutes"
    ask = (
        "I must be there at {g} and the trip takes {l}. When should I leave?",
        "The trip takes {l} and I need to arrive at {g}. When should I leave?",
    )
    leave = clock(goal - length)
    answer = f"{clock(goal)} minus {said} is {leave}, so leave at {leave}."
    return Item([(phrase(rng, ask, g=clock(goal), l=said), answer)], ("departure", goal, length))


@DOMAIN.family(base=0.8, expert=1.3)
def prerequisites(rng: Random) -> Item:
    """Three tasks under two before/after constraints."""
    a, b, c = rng.sample(TASKS, 3)
    said = [(a, b), (b, c)]
    rng.shuffle(said)
    facts = [f"{x} must come before {y}" if rng.random() < 0.6 else f"{y} must come after {x}"
             for x, y in said]  # fmt: skip
    text = f"{facts[0][0].upper()}{facts[0][1:]} and {facts[1]}."
    ask = ("{f} What is the order?", "{f} In which order should I work?", "{f} Plan the order.")
    return Item(
        [(phrase(rng, ask, f=text), f"The order is {a}, {b}, {c}.")], ("prerequisites", a, b, c)
    )


@DOMAIN.family(base=0.1, expert=0.5)
def order_follow_up(rng: Random) -> Item:
    """Asks for one position of an order just given."""
    a, b, c = rng.sample(TASKS, 3)
    first = (
        f"{a[0].upper()}{a[1:]} must come before {b} and {b} must come before {c}. "
        "What is the order?",
        f"The order is {a}, {b}, {c}.",
    )
    asked, what = pick(rng, (("first", a), ("second", b), ("last", c)))
    second = (f"What comes {asked}?", f"{what[0].upper()}{what[1:]} comes {asked}.")
    return Item([first, second], ("prerequisites", a, b, c))


@DOMAIN.family(base=0.2, expert=1.2)
def recipe(rng: Random) -> Item:
    """Step lists for everyday work; the key holds the phrasing."""
    activity = pick(rng, tuple(RECIPES))
    return fact(rng, "recipe", activity, RECIPE_ASK, numbered(RECIPES[activity]), a=activity)


@DOMAIN.family(base=0.2, expert=1.0)
def next_step(rng: Random) -> Item:
    """What comes after a given step; held out by activity and step."""
    activity = pick(rng, tuple(RECIPES))
    i = rng.randrange(3)
    steps = RECIPES[activity]
    ask = (
        "I want to {a}. I did this: {s}. What is next?",
        "To {a}, what comes after this step: {s}?",
        "I {a}. What should I do after this: {s}?",
    )
    form = rng.randrange(len(ask))
    question = ask[form].format(a=activity, s=steps[i])
    return Item([(question, f"The next step is: {steps[i + 1]}.")], ("next", activity, i, form))


@DOMAIN.family(base=0.5, expert=0.8)
def shortest_first(rng: Random) -> Item:
    """Sort three tasks by their time."""
    tasks = rng.sample(TASKS, 3)
    times = rng.sample(range(5, 65, 5), 3)
    listed = ", ".join(f"{t} {m} minutes" for t, m in zip(tasks, times, strict=True))
    reverse = rng.random() < 0.3
    order = [t for _, t in sorted(zip(times, tasks, strict=True), reverse=reverse)]
    how = "longest" if reverse else "shortest"
    ask = (
        "My tasks: {l}. Order them, {h} first.",
        "Sort these tasks, {h} first: {l}.",
    )
    question = phrase(rng, ask, l=listed, h=how)
    return Item([(question, f"{', '.join(order)}.")], ("sort", reverse, *times))


@DOMAIN.family(base=0.4, expert=1.0)
def total_time(rng: Random) -> Item:
    """Add up two tasks."""
    a, b = rng.sample(TASKS, 2)
    m, n = 5 * rng.randint(1, 10), 5 * rng.randint(1, 10)
    ask = (
        "{A} takes {m} minutes and {b} takes {n} minutes. How long is that in total?",
        "I plan {m} minutes of {a} and {n} minutes of {b}. How long do I need?",
    )
    answer = f"{m} + {n} = {m + n}, so it takes {m + n} minutes."
    question = phrase(rng, ask, A=a[0].upper() + a[1:], a=a, b=b, m=m, n=n)
    return Item([(question, answer)], ("total", m, n))


@DOMAIN.family(base=0.3, expert=0.6)
def budget(rng: Random) -> Item:
    """Whether two prices fit into a budget."""
    x, y = rng.sample(ITEMS, 2)
    a, b = 5 * rng.randint(1, 10), 5 * rng.randint(1, 10)
    money = max(5, a + b + 5 * rng.randint(-4, 4))
    ask = (
        "I have {m} dollars. A {x} costs {a} and a {y} costs {b}. Can I buy both?",
        "My budget is {m} dollars. Can I buy a {x} for {a} and a {y} for {b}?",
    )
    total = a + b
    word = "enough" if money >= total else "not enough"
    verdict = "yes" if money >= total else "no"
    answer = f"{a} + {b} = {total}, {money} is {word}, so {verdict}."
    return Item([(phrase(rng, ask, m=money, x=x, y=y, a=a, b=b), answer)], ("budget", money, a, b))


@DOMAIN.family(base=0.2, expert=1.0)
def weekday(rng: Random) -> Item:
    """Days ahead; held out by the day, the distance and the phrasing."""
    i, n = rng.randrange(7), rng.randint(1, 6)
    what, form = pick(rng, ("meeting", "deadline", "test", "trip")), rng.randrange(2)
    many = f"{n} day{'s' if n > 1 else ''}"
    question = (
        f"Today is {DAYS[i]}. The {what} is in {many}. Which day is that?",
        f"It is {DAYS[i]} and my {what} is in {many}. On which day is it?",
    )[form]
    answer = f"{many} after {DAYS[i]} is {DAYS[(i + n) % 7]}."
    return Item([(question, answer)], ("weekday", i, n, what, form))
