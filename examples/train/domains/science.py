"""Expert 3, science: facts, classification, units and simple formulas."""

from __future__ import annotations

from random import Random

from .families import Domain, Item, fact, is_held_out, phrase, pick

DOMAIN = Domain("science")

ELEMENTS = {
    "hydrogen": ("H", 1), "helium": ("He", 2), "lithium": ("Li", 3), "carbon": ("C", 6),
    "nitrogen": ("N", 7), "oxygen": ("O", 8), "fluorine": ("F", 9), "neon": ("Ne", 10),
    "sodium": ("Na", 11), "magnesium": ("Mg", 12), "aluminum": ("Al", 13), "silicon": ("Si", 14),
    "sulfur": ("S", 16), "chlorine": ("Cl", 17), "argon": ("Ar", 18), "potassium": ("K", 19),
    "calcium": ("Ca", 20), "iron": ("Fe", 26), "nickel": ("Ni", 28), "copper": ("Cu", 29),
    "zinc": ("Zn", 30), "silver": ("Ag", 47), "tin": ("Sn", 50), "gold": ("Au", 79),
    "mercury": ("Hg", 80), "lead": ("Pb", 82),
}  # fmt: skip
SYMBOL_ASK = (
    "What is the chemical symbol for {e}?",
    "What is the chemical symbol of {e}?",
    "What is the symbol for {e}?",
    "Which symbol does {e} have?",
    "Give me the chemical symbol for {e}.",
    "What symbol stands for {e}?",
)
NUMBER_ASK = (
    "What is the atomic number of {e}?",
    "Which atomic number does {e} have?",
    "How many protons does {e} have?",
    "Give me the atomic number of {e}.",
    "How many protons are in an atom of {e}?",
)
CLASSES = {
    "mammal": ("whale", "dog", "cat", "horse", "bat", "dolphin", "cow", "tiger", "mouse"),
    "bird": ("eagle", "penguin", "owl", "duck", "parrot", "sparrow", "ostrich"),
    "fish": ("shark", "salmon", "tuna", "trout", "sardine", "cod"),
    "reptile": ("snake", "lizard", "turtle", "crocodile", "gecko"),
    "insect": ("ant", "bee", "beetle", "butterfly", "fly", "wasp"),
    "amphibian": ("frog", "toad", "newt", "salamander"),
}
CLASS_OF = {animal: name for name, animals in CLASSES.items() for animal in animals}
CLASS_ASK = (
    "What kind of animal is a {a}?",
    "Which class of animals does a {a} belong to?",
    "What type of animal is the {a}?",
    "How is a {a} classified?",
    "To which group of animals does the {a} belong?",
)
UNITS = (
    ("kilometers", "meters", 1000),
    ("meters", "centimeters", 100),
    ("centimeters", "millimeters", 10),
    ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("liters", "milliliters", 1000),
    ("days", "hours", 24),
)
FACTS = {
    "which planet is closest to the sun": "Mercury is the planet closest to the sun.",
    "which planet is the largest": "Jupiter is the largest planet.",
    "which planet is known as the red planet": "Mars is known as the red planet.",
    "which planet is known for its rings": "Saturn is known for its rings.",
    "which gas do plants take in": "Plants take in carbon dioxide.",
    "which gas do humans breathe in": "Humans breathe in oxygen.",
    "which organ pumps blood": "The heart pumps blood.",
    "which organ is used to think": "The brain is used to think.",
    "which organs take in air": "The lungs take in air.",
    "which organ cleans the blood": "The kidneys clean the blood.",
    "what holds planets in orbit": "Gravity holds planets in orbit.",
    "what is the center of an atom called": "The center of an atom is called the nucleus.",
    "which particle has a negative charge": "The electron has a negative charge.",
    "which particle has a positive charge": "The proton has a positive charge.",
    "what is water made of": "Water is made of hydrogen and oxygen.",
    "what is the process by which plants make food": "Plants make food by photosynthesis.",
    "what is frozen water called": "Frozen water is called ice.",
    "which star is closest to the earth": "The sun is the star closest to the earth.",
    "what force slows sliding things": "Friction slows sliding things.",
    "what is the unit of force": "The unit of force is the newton.",
    "what is the unit of energy": "The unit of energy is the joule.",
    "what is the unit of power": "The unit of power is the watt.",
    "which part of a plant takes in water": "The roots take in water.",
    "what carries genetic information": "DNA carries genetic information.",
}
FACT_ASK = (
    "{Q}?",
    "In science, {q}?",
    "Do you know {q}?",
    "Tell me {q}.",
    "Can you tell me {q}?",
    "A science question: {q}?",
)


def element_fact(rng: Random, element: str, name: str) -> Item:
    """The symbol or the atomic number of an element."""
    symbol, number = ELEMENTS[element]
    if name == "symbol":
        answer = f"The chemical symbol for {element} is {symbol}."
        return fact(rng, name, element, SYMBOL_ASK, answer, e=element)
    answer = f"The atomic number of {element} is {number}."
    return fact(rng, name, element, NUMBER_ASK, answer, e=element)


@DOMAIN.family(base=0.1, expert=1.2)
def symbol(rng: Random) -> Item:
    """Chemical symbols; the key holds the phrasing."""
    return element_fact(rng, pick(rng, tuple(ELEMENTS)), "symbol")


@DOMAIN.family(base=0.1, expert=1.0)
def atomic_number(rng: Random) -> Item:
    """Atomic numbers; the key holds the phrasing."""
    return element_fact(rng, pick(rng, tuple(ELEMENTS)), "number")


@DOMAIN.family(base=0.05, expert=0.4)
def element_follow_up(rng: Random) -> Item:
    """A second element, asked for briefly."""
    name = pick(rng, ("symbol", "number"))
    first, second = rng.sample(sorted(ELEMENTS), 2)
    while is_held_out((name, first, 0)):
        first, second = rng.sample(sorted(ELEMENTS), 2)
    index = 0 if name == "symbol" else 1
    what = ("chemical symbol for", "atomic number of")[index]
    turns = [
        (f"What is the {what} {first}?", f"The {what} {first} is {ELEMENTS[first][index]}."),
        (f"And {what.split()[-1]} {second}?", f"The {what} {second} is {ELEMENTS[second][index]}."),
    ]
    return Item(turns, ("elements", name, first, second))


@DOMAIN.family(base=0.2, expert=0.8)
def animal_class(rng: Random) -> Item:
    """Animal classes; the key holds the phrasing."""
    animal = pick(rng, tuple(CLASS_OF))
    kind = CLASS_OF[animal]
    article = "An" if animal[0] in "aeiou" else "A"
    kind = f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
    return fact(rng, "class", animal, CLASS_ASK, f"{article} {animal} is {kind}.", a=animal)


@DOMAIN.family(base=0.4, expert=1.2)
def animal_check(rng: Random) -> Item:
    """Is a whale a fish? Held out by the pair."""
    animal, asked = pick(rng, tuple(CLASS_OF)), pick(rng, tuple(CLASSES))
    if rng.random() < 0.4:
        asked = CLASS_OF[animal]
    kind = CLASS_OF[animal]
    say = {name: f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in CLASSES}
    answer = f"{'Yes' if kind == asked else 'No'}, the {animal} is {say[kind]}."
    ask = ("Is the {a} {c}?", "Is a {a} {c}?")
    return Item([(phrase(rng, ask, a=animal, c=say[asked]), answer)], ("check", animal, asked))


@DOMAIN.family(base=0.3, expert=1.0)
def water_state(rng: Random) -> Item:
    """Solid, liquid or gas; held out by the temperature."""
    t = rng.randint(-60, 180)
    if t in (0, 100):
        t += 1
    state, why = ("solid", "below 0") if t < 0 else ("liquid", "between 0 and 100")
    if t > 100:
        state, why = "gas", "above 100"
    ask = (
        "Is water solid, liquid or gas at {t} degrees Celsius?",
        "What is the state of water at {t} degrees Celsius?",
        "In which state is water at {t} degrees?",
    )
    answer = f"{t} degrees is {why}, so water is {'a ' if state != 'liquid' else ''}{state}."
    return Item([(phrase(rng, ask, t=t), answer)], ("water", t))


@DOMAIN.family(base=0.5, expert=1.3)
def conversion(rng: Random) -> Item:
    """A larger unit into a smaller one."""
    big, small, factor = pick(rng, UNITS)
    n = rng.randint(2, 9) if factor in (60, 24) else rng.randint(2, 40)
    ask = (
        "How many {s} are in {n} {b}?",
        "Convert {n} {b} to {s}.",
        "How many {s} are {n} {b}?",
    )
    answer = f"1 {big[:-1]} is {factor} {small}, so {n} {big} are {n * factor} {small}."
    return Item([(phrase(rng, ask, s=small, n=n, b=big), answer)], ("convert", big, small, n))


@DOMAIN.family(base=0.5, expert=1.3)
def formula(rng: Random) -> Item:
    """Force, voltage and distance as products."""
    kind, a, b = rng.randrange(3), rng.randint(2, 12), rng.randint(2, 9)
    if kind == 0:
        ask: tuple[str, ...] = (
            "What force moves a mass of {a} kg with an acceleration of {b} m/s2?",
            "A mass of {a} kg accelerates at {b} m/s2. What is the force?",
        )
        answer = f"F = m x a = {a} x {b} = {a * b} N."
    elif kind == 1:
        ask = (
            "A current of {a} A flows through {b} ohms. What is the voltage?",
            "What is the voltage for {a} A through {b} ohms?",
        )
        answer = f"V = I x R = {a} x {b} = {a * b} V."
    else:
        ask = (
            "A train moves at {a} m/s for {b} seconds. How far does it go?",
            "How far does a ball roll in {b} seconds at {a} m/s?",
        )
        answer = f"s = v x t = {a} x {b} = {a * b} m."
    return Item([(phrase(rng, ask, a=a, b=b), answer)], ("formula", kind, a, b))


@DOMAIN.family(base=0.15, expert=1.0)
def science_fact(rng: Random) -> Item:
    """General facts; the key holds the phrasing."""
    q = pick(rng, tuple(FACTS))
    return fact(rng, "fact", q, FACT_ASK, FACTS[q], q=q, Q=q[0].upper() + q[1:])
