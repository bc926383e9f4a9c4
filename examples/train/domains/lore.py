"""Knowledge that only the experts are taught: one list of facts a domain.

The base never sees these families (share 0), so what a model says here comes from its experts'
values. The key holds the phrasing: a held-out item asks a taught fact in words not seen for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from .families import Domain, Item, fact, pick

ASK = (
    "{Q}?",
    "Tell me {q}.",
    "Can you tell me {q}?",
    "Do you know {q}?",
    "Please explain {q}.",
    "I would like to know {q}.",
    "Quick question: {q}?",
)

LORE: dict[str, dict[str, str]] = {
    "math": {
        "what a prime number is": "A prime has exactly two divisors, 1 and itself.",
        "what an even number is": "An even number is divisible by 2.",
        "how many sides a hexagon has": "A hexagon has 6 sides.",
        "how many sides a pentagon has": "A pentagon has 5 sides.",
        "how many sides an octagon has": "An octagon has 8 sides.",
        "how many degrees a triangle has": "The angles of a triangle add up to 180 degrees.",
        "how many degrees a circle has": "A circle has 360 degrees.",
        "what pi is": "Pi is the ratio of a circle's length to its width, about 3.14.",
        "what a right angle is": "A right angle has 90 degrees.",
        "what a dozen is": "A dozen is 12.",
        "what the radius is": "The radius is half of the diameter.",
        "what the median is": "The median is the middle value of a sorted list.",
        "what a factorial is": "The factorial of n is the product of 1 to n.",
        "what a square root is": "The square root of n is the number whose square is n.",
    },
    "logic": {
        "what a fallacy is": "A fallacy is an error in reasoning.",
        "what a premise is": "A premise is a statement an argument starts from.",
        "what a paradox is": "A paradox is a statement that contradicts itself.",
        "what modus ponens is": "From P and if P then Q follows Q.",
        "what modus tollens is": "From not Q and if P then Q follows not P.",
        "what a tautology is": "A tautology is true in every case.",
        "what a contradiction is": "A contradiction is false in every case.",
        "what a syllogism is": "A syllogism draws a conclusion from two premises.",
        "what deduction is": "Deduction goes from the general to the particular.",
        "what induction is": "Induction goes from the particular to the general.",
        "what a counterexample is": "A counterexample shows that a general claim is false.",
        "what circular reasoning is": "Circular reasoning assumes what it wants to prove.",
        "what negation does": "Negation turns true into false and false into true.",
        "what exclusive or means": "Exclusive or means one of the two, but not both.",
    },
    "code": {
        "what a variable is": "A variable is a name for a value.",
        "what a loop is": "A loop repeats a block of code.",
        "what a function is": "A function is a named block of code that can be called.",
        "what recursion is": "Recursion is when a function calls itself.",
        "what a compiler does": "A compiler translates source code into machine code.",
        "what a bug is": "A bug is an error in a program.",
        "what a dictionary is": "A dictionary maps keys to values.",
        "what a tuple is": "A tuple is a fixed sequence of values.",
        "what a class is": "A class describes objects and their methods.",
        "what git is": "Git is a tool for version control.",
        "what an exception is": "An exception is an error raised while a program runs.",
        "what a unit test is": "A unit test checks one small part of a program.",
        "what a module is": "A module is a file with Python code.",
        "what a stack is": "A stack returns the item added last first.",
    },
    "science": {
        "what a cell is": "A cell is the smallest unit of life.",
        "what evolution is": "Evolution is the change of species over generations.",
        "what a magnet does": "A magnet attracts iron.",
        "what an ecosystem is": "An ecosystem is a community of living things and their place.",
        "how fast light is": "Light travels about 300000 kilometers per second.",
        "what a vaccine does": "A vaccine trains the body to fight a disease.",
        "what an acid is": "An acid has a pH below 7.",
        "what a base is in chemistry": "A base has a pH above 7.",
        "why the sky is blue": "Air scatters blue light more than red light.",
        "why it gets dark at night": "The earth turns away from the sun.",
        "what causes the tides": "The gravity of the moon causes the tides.",
        "what a fossil is": "A fossil is the preserved trace of an ancient living thing.",
        "what an isotope is": "Isotopes differ only in their number of neutrons.",
        "what a molecule is": "A molecule is a group of bonded atoms.",
    },
    "planning": {
        "what a milestone is": "A milestone marks an important point of a plan.",
        "what a deadline is": "A deadline is the latest time for a task.",
        "what a budget is": "A budget is a plan for spending money.",
        "what a backup plan is": "A backup plan is used if the first plan fails.",
        "what a critical path is": "The critical path is the longest chain of tasks.",
        "what a priority is": "A priority is a task that comes first.",
        "what a buffer is in a plan": "A buffer is spare time for delays.",
        "what to do with a large task": "Split a large task into small steps.",
        "what to do with urgent tasks": "Do urgent and important tasks first.",
        "what to do at the end of a project": "Review what went well and what did not.",
        "what delegation is": "Delegation means giving a task to someone else.",
        "what a checklist is for": "A checklist makes sure that no step is forgotten.",
        "what a risk is": "A risk is something that may go wrong.",
        "what a schedule is": "A schedule says when each task is done.",
    },
    "abstract": {
        "what a metaphor is": "A metaphor describes one thing as another.",
        "what a symbol is": "A symbol stands for something else.",
        "what an analogy is": "An analogy compares two relations.",
        "what a pattern is": "A pattern is a rule that repeats.",
        "what symmetry is": "Symmetry means that a shape matches its mirror image.",
        "what a palindrome is": "A palindrome reads the same in both directions.",
        "what a synonym is": "A synonym is a word with the same meaning.",
        "what an antonym is": "An antonym is a word with the opposite meaning.",
        "what an anagram is": "An anagram has the same letters in another order.",
        "what abstraction is": "Abstraction keeps what matters and drops the details.",
        "what irony is": "Irony says the opposite of what is meant.",
        "what a riddle is": "A riddle is a question with a hidden answer.",
        "what a category is": "A category is a group of similar things.",
        "what a hypothesis is": "A hypothesis is a guess that can be tested.",
    },
}


# From "what a prime number is" to "What is a prime number", first match.
DIRECT = (
    (r"what (.+?) (is|does|means)( .+)?$", None),
    (r"what to do (.+)$", r"What should I do \1"),
    (r"how many (\w+) (.+) has$", r"How many \1 does \2 have"),
    (r"how (\w+) (.+) is$", r"How \1 is \2"),
    (r"why it gets (.+)$", r"Why does it get \1"),
    (r"why (.+) is (.+)$", r"Why is \1 \2"),
)


def direct(clause: str) -> str:
    """The direct question for an indirect one, without its question mark."""
    for pattern, form in DIRECT:
        found = re.match(pattern, clause)
        if found is None:
            continue
        if form is not None:
            return found.expand(form)
        subject, verb, rest = found[1], found[2], found[3] or ""
        tail = {"does": " do", "means": " mean", "is": ""}[verb]
        return f"What {'is' if verb == 'is' else 'does'} {subject}{tail}{rest}"
    return clause[0].upper() + clause[1:]


def add_lore(domain: Domain, share: float) -> None:
    """Give a domain its list of facts as a family for the experts only."""
    facts = LORE[domain.name]

    def lore(rng: Random) -> Item:
        """One fact in one phrasing."""
        q = pick(rng, tuple(facts))
        return fact(rng, "lore", q, ASK, facts[q], q=q, Q=direct(q))

    register: Callable[[Callable[[Random], Item]], object] = domain.family(base=0.0, expert=share)
    register(lore)
