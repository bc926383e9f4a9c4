"""Greetings and thanks, so that a chat does not derail. Not a domain of the card."""

from __future__ import annotations

from random import Random

from .families import Domain, Item, pick

DOMAIN = Domain("small talk")

HELLO = "Hello! Ask me about math, logic, code, science, planning or patterns."
ANSWERS = {
    HELLO: ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "hello", "hi"),
    "I am a tiny SaRDinE model with eight sparse experts.": (
        "Who are you?", "What are you?", "Tell me about yourself.", "What is your name?",
    ),
    "I can answer short questions about math, logic, code, science, planning and patterns.": (
        "What can you do?", "How can you help me?", "Help", "What do you know?",
    ),
    "You are welcome!": ("Thanks!", "Thank you!", "Thanks", "Thank you.", "Great, thanks!"),
    "Goodbye!": ("Bye", "Bye!", "Goodbye!", "See you!"),
}  # fmt: skip


@DOMAIN.family()
def greeting(rng: Random) -> Item:
    """One exchange; always in the training split."""
    answer = pick(rng, tuple(ANSWERS))
    return Item([(pick(rng, ANSWERS[answer]), answer)], ("greeting", 0))
