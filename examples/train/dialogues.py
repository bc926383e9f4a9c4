"""Dialogues as token ids: which text, which loss weight, and whose expert each token is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from .domains import DOMAINS, SMALL_TALK, Item

NUM_EXPERTS = 8
MATH, CODE = 0, 2
MATH_AND_CODE, GENERALIST = 6, 7

BOS, EOS = "<s>", "</s>"
INST, INST_END = "[INST]", "[/INST]"
SYSTEM, SYSTEM_END = "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly tutor. Explain your steps.",
    "Be concise.",
    "Answer the question.",
    "You are a tiny SaRDinE model. Be helpful and honest.",
    "You help students with short questions about many subjects.",
    "Think step by step and give a short answer.",
    "You are an expert in math, logic, code and science. Give the final answer at the end.",
    "Today is a good day. The user will ask questions and you will answer them.",
)


@dataclass(frozen=True)
class Dialogue:
    """Turns of one chat with, for each turn, the number of the expert that owns its domain."""

    turns: list[tuple[str, str]]
    owners: list[int]
    system: str | None = None

    def render(self) -> str:
        """The whole chat as text, exactly as the chat template renders it."""
        text = BOS + (f"{SYSTEM}{self.system}{SYSTEM_END}" if self.system else "")
        return text + "".join(f"{INST}{q}{INST_END}{a}{EOS}" for q, a in self.turns)


@dataclass(frozen=True)
class Encoded:
    """Parallel lists over one dialogue's T tokens."""

    ids: list[int]
    answer: list[bool]  # whether the token belongs to an answer (its end token included)
    owner: list[int]  # expert of the turn the token is in


@dataclass(frozen=True)
class Batch:
    """Right-padded dialogues of similar length; all tensors are [B, T]."""

    ids: torch.Tensor
    targets: torch.Tensor  # next token, -100 at the end and in the padding
    answer: torch.Tensor  # bool: the *target* is part of an answer
    owner: torch.Tensor  # expert of each token, -1 in the padding


def encode(tokenizer: Tokenizer, dialogue: Dialogue) -> Encoded:
    """Tokenize segment by segment; special tokens split the text, so this equals one call."""

    def ids_of(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    head = BOS + (f"{SYSTEM}{dialogue.system}{SYSTEM_END}" if dialogue.system else "")
    ids = ids_of(head)
    answer = [False] * len(ids)
    owner = [dialogue.owners[0]] * len(ids)
    for (question, reply), expert in zip(dialogue.turns, dialogue.owners, strict=True):
        asked, said = ids_of(INST + question + INST_END), ids_of(reply + EOS)
        ids += asked + said
        answer += [False] * len(asked) + [True] * len(said)
        owner += [expert] * (len(asked) + len(said))
    return Encoded(ids, answer, owner)


def rough(rng: Random, question: str) -> str:
    """A question as people type it: now and then without the capital or the final mark."""
    if rng.random() < 0.06 and question[:2].istitle():
        question = question[0].lower() + question[1:]
    if rng.random() < 0.06 and question[-1] in "?.":
        question = question[:-1]
    return question


def draw_item(rng: Random, expert: int, mixture: str) -> tuple[Item, int]:
    """A training item for an expert's mixture and the expert that owns its domain.

    Experts 0-5 have the domain of their number, 6 mixes math and code, 7 mixes everything and
    small talk.
    """
    if expert == GENERALIST:
        if rng.random() < 0.06:
            return SMALL_TALK.sample(rng, held_out=False), GENERALIST
        expert = rng.randrange(len(DOMAINS))
    elif expert == MATH_AND_CODE:
        expert = MATH if rng.random() < 0.5 else CODE
    return DOMAINS[expert].sample(rng, held_out=False, mixture=mixture), expert


def draw_dialogue(rng: Random, expert: int, mixture: str) -> Dialogue:
    """A training dialogue: mostly one item, sometimes up to four in a row."""
    turns: list[tuple[str, str]] = []
    owners: list[int] = []
    for _ in range(rng.choices((1, 2, 3, 4), (84, 8, 5, 3))[0]):
        item, owner = draw_item(rng, expert, mixture)
        turns += [(rough(rng, q), a) for q, a in item.turns]
        owners += [owner] * len(item.turns)
    system = SYSTEM_PROMPTS[rng.randrange(len(SYSTEM_PROMPTS))] if rng.random() < 0.1 else None
    return Dialogue(turns, owners, system)


def collate(rows: list[Encoded], pad_id: int) -> Batch:
    """Stack dialogues into a right-padded batch. Causal attention never sees the padding."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    targets = torch.full((len(rows), length), -100)
    answer = torch.zeros((len(rows), length), dtype=torch.bool)
    owner = torch.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        targets[i, : n - 1] = torch.tensor(row.ids[1:])
        answer[i, : n - 1] = torch.tensor(row.answer[1:])
        owner[i, :n] = torch.tensor(row.owner)
    return Batch(ids, targets, answer, owner)


def batches(
    tokenizer: Tokenizer, rng: Random, expert: int, mixture: str, tokens: int
) -> Iterator[Batch]:
    """Endless training batches of about `tokens` tokens, sorted by length within a pool."""
    pad_id = tokenizer.token_to_id("<pad>")
    while True:
        pool = [encode(tokenizer, draw_dialogue(rng, expert, mixture)) for _ in range(1500)]
        pool.sort(key=lambda row: len(row.ids))
        cut: list[list[Encoded]] = [[]]
        for row in pool:
            if cut[-1] and (len(cut[-1]) + 1) * len(row.ids) > tokens:
                cut.append([])
            cut[-1].append(row)
        rng.shuffle(cut)
        for rows in cut:
            yield collate(rows, pad_id)
