"""Measure the saved example on held-out items and print Markdown.

    python -m examples.train.evaluate            # print the tables
    python -m examples.train.evaluate --write    # and put them into examples/tiny-sardine/README.md

Everything is computed from the stored files. Loss and exact match concern the last answer of each
held-out item; exact match compares the whole greedy answer with the reference.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from .dialogues import NUM_EXPERTS, Dialogue, Encoded, collate, encode
from .domains import DOMAINS, Item, sample_family
from .domains.mathematics import DOMAIN as MATH_DOMAIN
from .model import WEIGHTS_FILE, Mode, SardineModel
from .showcase import CHATS, SHOWCASE
from .tokenizer import EOS_ID, PAD_ID
from .train import DEFAULT_OUT, THREADS

SEED = 7
ITEMS = 60  # per domain
START, END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Setting:
    """One column of the table."""

    title: str
    mode: Mode
    random_seed: int | None = None


SETTINGS = (
    Setting("sparse", "sparse"),
    Setting("off", "off"),
    Setting("gain", "gain"),
    Setting("sparse, random experts", "sparse", random_seed=SEED),
)


@dataclass(frozen=True)
class Score:
    """Held-out figures of one set of items."""

    loss: float  # mean negative log-likelihood of an answer token
    exact: float  # share of answers reproduced exactly


def held_out_items(name: str) -> list[Item]:
    """A fixed sample of a domain's held-out items, or of the percent family."""
    rng = Random(f"{SEED} {name}")
    if name == "percent":
        family = next(f for f in MATH_DOMAIN.families if f.name == "percent")
        return [sample_family(family, rng, held_out=True) for _ in range(ITEMS)]
    domain = next(d for d in DOMAINS if d.name == name)
    return [domain.sample(rng, held_out=True) for _ in range(ITEMS)]


def last_answer(tokenizer: Tokenizer, item: Item) -> Encoded:
    """The item's tokens with only its last answer marked as such."""
    row = encode(tokenizer, Dialogue(item.turns, [0] * len(item.turns)))
    start = len(row.ids) - row.answer[::-1].index(False)
    return Encoded(row.ids, [i >= start for i in range(len(row.ids))], row.owner)


def by_length(rows: Sequence[tuple[int, list[int]]]) -> dict[int, list[tuple[int, list[int]]]]:
    """Group (index, ids) by length, so that a group needs no padding."""
    groups: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for index, ids in rows:
        groups[len(ids)].append((index, ids))
    return groups


def greedy(model: SardineModel, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers for prompts of any lengths."""
    answers: list[list[int]] = [[] for _ in prompts]
    for group in by_length(list(enumerate(prompts))).values():
        ids = torch.tensor([row for _, row in group])
        for (index, _), answer in zip(group, model.generate(ids, EOS_ID), strict=True):
            answers[index] = answer
    return answers


@torch.no_grad()
def mean_loss(model: SardineModel, rows: list[Encoded]) -> float:
    """Mean negative log-likelihood over the marked tokens of all rows."""
    total, count = 0.0, 0
    for start in range(0, len(rows), 50):
        batch = collate(rows[start : start + 50], PAD_ID)
        logits = model.lm(input_ids=batch.ids, use_cache=False).logits
        losses = F.cross_entropy(logits[batch.answer], batch.targets[batch.answer])
        total += losses.item() * int(batch.answer.sum())
        count += int(batch.answer.sum())
    return total / count


def score(model: SardineModel, tokenizer: Tokenizer, name: str, setting: Setting) -> Score:
    """Loss and exact match of one set of items under one setting."""
    model.set_mode(setting.mode, random_seed=setting.random_seed)
    rows = sorted(
        (last_answer(tokenizer, item) for item in held_out_items(name)), key=lambda r: len(r.ids)
    )
    answers = greedy(model, [row.ids[: row.answer.index(True)] for row in rows])
    wanted = [row.ids[row.answer.index(True) : -1] for row in rows]
    exact = sum(a == w for a, w in zip(answers, wanted, strict=True)) / len(rows)
    return Score(mean_loss(model, rows), exact)


@torch.no_grad()
def routing_share(model: SardineModel, tokenizer: Tokenizer, name: str) -> Tensor:
    """Mean routing weight of each expert over the domain's tokens and all layers: [E]."""
    model.set_mode("sparse")
    share = torch.zeros(NUM_EXPERTS)
    for item in held_out_items(name):
        row = encode(tokenizer, Dialogue(item.turns, [0] * len(item.turns)))
        model.lm(input_ids=torch.tensor([row.ids]), use_cache=False)
        for ffn in model.ffns.values():
            assert ffn.chosen is not None
            assert ffn.weights is not None
            share.index_add_(0, ffn.chosen.flatten(), ffn.weights.flatten())
    return share / share.sum()


def answer_chat(model: SardineModel, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """The model's own answers to a chat's questions, one after the other."""
    ids = tokenizer.encode("<s>", add_special_tokens=False).ids
    answers = []
    for question in questions:
        ids += tokenizer.encode(f"[INST]{question}[/INST]", add_special_tokens=False).ids
        answer = model.generate(torch.tensor([ids]), EOS_ID)[0]
        answers.append(tokenizer.decode(answer))
        ids += [*answer, EOS_ID]
    return answers


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def score_tables(model: SardineModel, tokenizer: Tokenizer) -> str:
    """Loss and exact match by domain and setting."""
    names = [domain.name for domain in DOMAINS]
    scores = {
        (name, s.title): score(model, tokenizer, name, s)
        for name in [*names, "percent"]
        for s in SETTINGS
    }
    titles = [s.title for s in SETTINGS]
    parts = []
    for what, show in (
        ("Exact match of the whole answer", lambda s: f"{100 * s.exact:.1f} %"),
        ("Loss per answer token (nats)", lambda s: f"{s.loss:.3f}"),
    ):
        rows = [[name, *(show(scores[name, t]) for t in titles)] for name in names]
        means = [
            Score(
                sum(scores[name, t].loss for name in names) / len(names),
                sum(scores[name, t].exact for name in names) / len(names),
            )
            for t in titles
        ]
        rows.append(["**mean of the six**", *(f"**{show(m)}**" for m in means)])
        rows.append(["the percent family alone", *(show(scores["percent", t]) for t in titles)])
        parts.append(f"{what}, {ITEMS} held-out items a row:\n\n{table(['domain', *titles], rows)}")
    return "\n\n".join(parts)


def routing_table(model: SardineModel, tokenizer: Tokenizer) -> str:
    """Routing weight by domain and expert."""
    rows = []
    for domain in DOMAINS:
        share = routing_share(model, tokenizer, domain.name).tolist()
        rows.append([domain.name, *(f"{100 * value:.0f} %" for value in share)])
    header = ["domain", *(f"{e} {d.name}" for e, d in enumerate(DOMAINS)), "6 mixed", "7 general"]
    title = "Share of the routing weight, all tokens and layers, held-out items:"
    return f"{title}\n\n{table(header, rows)}"


def samples(model: SardineModel, tokenizer: Tokenizer) -> str:
    """Real outputs for the showcase, with the experts and without."""

    def cell(text: str) -> str:
        return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"

    rows = []
    for name, questions in SHOWCASE.items():
        for question in questions:
            answers = []
            for mode in ("sparse", "off"):
                model.set_mode(mode)
                answers.append(cell(answer_chat(model, tokenizer, [question])[0]))
            rows.append([name, question, *answers])
    model.set_mode("sparse")
    chats = []
    for questions in CHATS:
        answers = answer_chat(model, tokenizer, questions)
        lines = [f"> {q}\n{a}" for q, a in zip(questions, answers, strict=True)]
        chats.append("\n".join(lines))
    return (
        "Greedy answers (⏎ is a line break):\n\n"
        + table(["domain", "question", "sparse", "off"], rows)
        + "\n\nChats, `sparse`:\n\n```text\n" + "\n\n".join(chats) + "\n```"
    )  # fmt: skip


def main() -> None:
    """Print the results and, if asked, put them between the README's markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--write", action="store_true", help="update the model's README.md")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    base = args.model / "base"
    model = SardineModel.load(base, args.model / WEIGHTS_FILE)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    text = "\n\n".join(
        (
            score_tables(model, tokenizer),
            routing_table(model, tokenizer),
            samples(model, tokenizer),
        )
    )
    print(text)
    if args.write:
        readme = args.model / "README.md"
        old = readme.read_text()
        head, tail = old[: old.index(START)], old[old.index(END) :]
        readme.write_text(f"{head}{START}\n\n{text}\n\n{tail}")


if __name__ == "__main__":
    main()
