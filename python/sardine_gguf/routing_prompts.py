"""The texts of a routing report: where they come from, and their routes."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sardine_gguf.errors import FormatError
from sardine_gguf.model import Sardine
from sardine_gguf.routes import Routes

MAX_PROMPTS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prompt:
    """A text to route.

    Attributes:
        group: what it belongs to, for instance a domain; its figures are also given for the whole group.
        title: what it is called in the report.
    """

    group: str
    title: str
    text: str


@dataclass(frozen=True)
class RoutedPrompt:
    """A text's tokens with their routes.

    Attributes:
        tokens: ids. pieces: what each stands for, bytes that are no whole character as "\\xe2".
    """

    prompt: Prompt
    tokens: list[int]
    pieces: list[str]
    routes: Routes


def file_prompt(path: str) -> Prompt:
    """A file's whole text, named like the file; of standard input for "-".

    Raises:
        OSError, FormatError: it cannot be read, or is not UTF-8.
    """
    text = _utf8(path)
    name = "standard input" if path == "-" else one_line(Path(path).name)
    return Prompt(name, name, text)


def distinct(groups: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """The texts of all groups, each group under a name of its own: one that is taken gets a number."""
    taken: set[str] = set()
    times: Counter[str] = Counter()
    found: list[Prompt] = []
    for prompts in groups:
        given = name = prompts[0].group
        while name in taken:
            times[given] += 1
            name = f"{given} ({times[given] + 1})"
        taken.add(name)
        for p in prompts:
            found.append(replace(p, group=name, title=name if p.title == given else p.title))
    return found


def text_prompt(text: str) -> Prompt:
    """A text given on the command line, a group of its own."""
    title = one_line(text)
    return Prompt(title, title, text)


def read_prompts(path: str) -> list[list[Prompt]]:
    """Texts by group from JSON like {"math": ["What is 2 + 2?", ...], "code": "..."}; "-" is standard input.

    Raises:
        OSError: it cannot be read.
        FormatError: it is not such a file.
    """

    def fail(what: str) -> FormatError:
        return FormatError(f"{path}: {what}", file=path, field="prompts")

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = next((k for k, n in Counter(k for k, _ in pairs).items() if n > 1), None)
        if twice is not None:
            raise fail(f"'{one_line(twice)}' stands twice: put its texts into one list")
        return dict(pairs)

    try:
        groups = json.loads(_utf8(path), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        if isinstance(e, FormatError):
            raise
        raise fail(f"the prompts are not JSON: {e}") from None
    if not isinstance(groups, dict) or not groups:
        raise fail('expected an object of lists of texts, {"math": ["What is 2 + 2?"], ...}')
    found: list[list[Prompt]] = []
    for group, texts in groups.items():
        if not isinstance(texts, str | list):
            raise fail(
                f"'{one_line(group)}' is {json.dumps(texts)[:40]}, expected a text or a list of texts"
            )
        of_group = []
        for text in [texts] if isinstance(texts, str) else texts:
            if not isinstance(text, str):
                raise fail(
                    f"a text of '{one_line(group)}' is a {type(text).__name__}, expected a string"
                )
            of_group.append(Prompt(one_line(group), one_line(text), text))
        found += [of_group] if of_group else []
    n = sum(map(len, found))
    if not 0 < n <= MAX_PROMPTS:
        raise fail(f"there are {n} texts, expected 1 to {MAX_PROMPTS:,}")
    return found


def one_line(text: str, longest: int = 80) -> str:
    """The text's beginning on one line, lone surrogates (from "\\ud800" in JSON) as U+FFFD."""
    line = " ".join(_SURROGATE.sub("\ufffd", text[: 4 * longest]).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def encode(model: Sardine, prompts: Sequence[Prompt], *, chat: bool) -> list[list[int]]:
    """Token ids of each text.

    Args:
        chat: each text is the user's message in the model's chat template; else a plain text, BOS before
            it if the model wants one.

    The texts are not empty (`check_texts`).
    """
    if chat:
        return [model.chat_template.encode([{"role": "user", "content": p.text}]) for p in prompts]
    return [model.tokenize(p.text) for p in prompts]


def check_texts(prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for a text that is empty, of which only a BOS would be routed."""
    for i, prompt in enumerate(prompts):
        if not prompt.text:
            name = f"'{prompt.group}'" if prompt.group else f"number {i + 1}"
            raise ValueError(f"a text of {name} is empty: there is nothing to route")


def route(
    model: Sardine, prompts: Sequence[Prompt], encoded: Sequence[list[int]]
) -> Iterable[RoutedPrompt]:
    """Evaluates each text in an empty context."""
    for prompt, tokens in zip(prompts, encoded, strict=True):
        model.reset()
        model.session.decode(tokens)
        pieces = [model.model.piece(t, True).decode("utf-8", "backslashreplace") for t in tokens]
        yield RoutedPrompt(prompt, tokens, pieces, model.routes())


def _utf8(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FormatError(
            f"{path}: the text is not UTF-8 at byte {e.start}: convert it", file=path, field="text"
        ) from None
