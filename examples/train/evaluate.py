"""Measure the saved example on held-out items and print Markdown.

    python -m examples.train.evaluate            # print the tables
    python -m examples.train.evaluate --write    # and put them into examples/tiny-sardine/README.md

Answers and routing are the runtime's on an f32 file made from the stored ones, which equals the
reference model to rounding and is much faster; losses, and the experts drawn at random, are the reference
model's. Loss and exact match concern the last answer of each held-out item; exact match compares the
whole greedy answer with the reference answer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from sardine_gguf import Sardine
from sardine_gguf.convert import convert
from tokenizers import Tokenizer
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


@contextmanager
def runtime(folder: Path) -> Iterator[dict[Mode, Sardine]]:
    """The stored model as an f32 file, open in each mode."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        path = Path(name) / "f32.gguf"
        convert(folder / "base", folder / WEIGHTS_FILE, path, outtype="f32")
        modes: tuple[Mode, ...] = ("sparse", "off", "gain")
        yield {
            mode: stack.enter_context(
                Sardine(path, n_ctx=1024, n_threads=THREADS, delta_mode=mode, kv_type="f32")
            )
            for mode in modes
        }


def greedy(model: Sardine, prompt: list[int]) -> list[int]:
    """The greedy answer, without the end token."""
    generation = model.start(prompt, max_tokens=64, temperature=0)
    for _ in generation:
        pass
    return [token for token in generation.tokens if token != EOS_ID]


def exact_match(model: Sardine, rows: list[Encoded]) -> float:
    """Share of last answers reproduced exactly."""
    right = 0
    for row in rows:
        start = row.answer.index(True)
        right += greedy(model, row.ids[:start]) == row.ids[start:-1]
    return right / len(rows)


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


def routing_share(model: Sardine, tokenizer: Tokenizer, name: str) -> list[float]:
    """Mean routing weight of each expert over the domain's tokens and all layers: [E]."""
    share = np.zeros(NUM_EXPERTS)
    for item in held_out_items(name):
        model.reset()
        model.eval(encode(tokenizer, Dialogue(item.turns, [0] * len(item.turns))).ids)
        ids, weights = model.routing()
        np.add.at(share, ids.reshape(-1), weights.reshape(-1))
    return list(share / share.sum())


def answer_chat(model: Sardine, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """The model's own answers to a chat's questions, one after the other."""
    ids = tokenizer.encode("<s>", add_special_tokens=False).ids
    answers = []
    for question in questions:
        ids += tokenizer.encode(f"[INST]{question}[/INST]", add_special_tokens=False).ids
        answer = greedy(model, ids)
        answers.append(tokenizer.decode(answer))
        ids += [*answer, EOS_ID]
    return answers


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_domain(
    title: str, columns: Sequence[str], values: dict[tuple[str, str], float], form: str
) -> str:
    """One table of all domains, their mean and the percent family."""
    names = [domain.name for domain in DOMAINS]

    def show(value: float) -> str:
        return form.format(value).replace("%", " %")

    rows = [[name, *(show(values[name, c]) for c in columns)] for name in names]
    means = [sum(values[name, c] for name in names) / len(names) for c in columns]
    rows.append(["**mean of the six**", *(f"**{show(mean)}**" for mean in means)])
    rows.append(["the percent family alone", *(show(values["percent", c]) for c in columns)])
    return f"{title}, {ITEMS} held-out items a row:\n\n{table(['domain', *columns], rows)}"


def score_tables(model: SardineModel, modes: dict[Mode, Sardine], tokenizer: Tokenizer) -> str:
    """Exact match by domain and mode, loss by domain and setting."""
    rows = {
        name: [last_answer(tokenizer, item) for item in held_out_items(name)]
        for name in [*(domain.name for domain in DOMAINS), "percent"]
    }
    exact: dict[tuple[str, str], float] = {}
    loss: dict[tuple[str, str], float] = {}
    for name, encoded in rows.items():
        for mode, opened in modes.items():
            exact[name, mode] = exact_match(opened, encoded)
    for setting in SETTINGS:
        model.set_mode(setting.mode, random_seed=setting.random_seed)
        for name, encoded in rows.items():
            by_length = sorted(encoded, key=lambda row: len(row.ids))
            loss[name, setting.title] = mean_loss(model, by_length)
    titles = [setting.title for setting in SETTINGS]
    return "\n\n".join(
        (
            by_domain("Exact match of the whole answer", list(modes), exact, "{:.1%}"),
            by_domain("Loss per answer token (nats)", titles, loss, "{:.3f}"),
        )
    )


def routing_table(model: Sardine, tokenizer: Tokenizer) -> str:
    """Routing weight by domain and expert."""
    rows = []
    for domain in DOMAINS:
        share = routing_share(model, tokenizer, domain.name)
        rows.append([domain.name, *(f"{100 * value:.0f} %" for value in share)])
    header = ["domain", *(f"{e} {d.name}" for e, d in enumerate(DOMAINS)), "6 mixed", "7 general"]
    title = "Share of the routing weight, all tokens and layers, held-out items:"
    return f"{title}\n\n{table(header, rows)}"


def samples(modes: dict[Mode, Sardine], tokenizer: Tokenizer) -> str:
    """Real outputs for the showcase, with the experts and without."""

    def cell(text: str) -> str:
        return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"

    shown: tuple[Mode, ...] = ("sparse", "off")
    rows = []
    for name, questions in SHOWCASE.items():
        for question in questions:
            answers = [cell(answer_chat(modes[m], tokenizer, [question])[0]) for m in shown]
            rows.append([name, question, *answers])
    chats = []
    for questions in CHATS:
        answers = answer_chat(modes["sparse"], tokenizer, questions)
        lines = [f"> {q}\n{a}" for q, a in zip(questions, answers, strict=True)]
        chats.append("\n".join(lines))
    return (
        "Greedy answers (⏎ is a line break):\n\n"
        + table(["domain", "question", *shown], rows)
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
    with runtime(args.model) as modes:
        text = "\n\n".join(
            (
                score_tables(model, modes, tokenizer),
                routing_table(modes["sparse"], tokenizer),
                samples(modes, tokenizer),
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
