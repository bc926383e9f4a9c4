"""Conversations as JSON files: /save, /load, and --session, which saves after each turn."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sardine_gguf.chat_settings import LOOKS
from sardine_gguf.errors import FormatError
from sardine_gguf.output_file import check_output

FORMAT, VERSION = "sardine_gguf chat", 1
LIMIT = 64 << 20
_ROLES = ("system", "user", "assistant")


@dataclass
class Conversation:
    """What a file holds.

    Attributes:
        messages: in OpenAI's shape: a system message or none, then user and assistant in turns.
        settings: generation options that differ from the model's own.
        model: name of the model that it was held with.
        experts: how they are steered, {} for the router's choice; None if the file does not say.
        looks: what is shown beside the answers, as `Looks` names it.
        path: the file that it was read from, "" for none.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    experts: dict[str, float | str] | None = None
    looks: dict[str, bool] = field(default_factory=dict)
    path: str = field(default="", compare=False)


def save_conversation(path: str | os.PathLike[str], conversation: Conversation) -> None:
    """Writes a conversation, only for its owner to read; the file appears complete or not at all.

    Of a symbolic link the file that it names is written, and the link stays.

    Raises:
        FormatError: it is a device or a pipe.
        OSError: it cannot be written.
    """
    from sardine_gguf.convert.atomic import AtomicFile, sweep  # type: ignore[import-untyped,unused-ignore]

    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": conversation.model,
        "settings": conversation.settings,
        "looks": conversation.looks,
        **({} if conversation.experts is None else {"experts": conversation.experts}),
        "messages": conversation.messages,
    }
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(21, "it is a folder, expected a file name", str(target))
    check_output(target, ())
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    try:
        sweep(target)
        with AtomicFile(target) as out:
            assert out.temp is not None
            out.temp.chmod(0o600)
            out.write(text.encode("utf-8", "replace"))
            out.commit(lambda _: None, force=True)
    except OSError as e:
        if e.filename is None:  # a failed write does not know its file
            e.filename = str(target)
        raise


def load_conversation(path: str | os.PathLike[str]) -> Conversation:
    """Reads what `save_conversation` wrote.

    Raises:
        FormatError: the file is damaged or something else; `field` says where.
        OSError: it cannot be read.
    """
    name = os.fspath(path)

    def bad(where: str, what: str) -> FormatError:
        place = f"{where}: " if where else ""
        return FormatError(f"{name}: no saved conversation: {place}{what}", file=name, field=where)

    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise bad("", "this is no regular file")
    with Path(path).open("rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise bad("", f"more than {LIMIT >> 20} MiB")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise bad("", f"expected JSON, as /save writes it ({e})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise bad("format", f'expected {{"format": "{FORMAT}", ...}}')
    if document.get("version") != VERSION:
        raise bad("version", f"is {document.get('version')!r}, this version reads {VERSION}")
    settings, model = document.get("settings", {}), document.get("model", "")
    if not isinstance(settings, dict):
        raise bad("settings", "expected an object")
    if not isinstance(model, str):
        raise bad("model", "expected text")
    try:
        looks = checked_looks(document.get("looks", {}))
        experts = _checked_experts(document.get("experts"))
    except ValueError as e:
        raise bad(*str(e).split(": ", 1)) from None
    try:
        messages = checked_messages(document.get("messages"))
    except ValueError as e:
        raise bad("messages", str(e)) from None
    return Conversation(messages, settings, model, experts, looks, path=name)


def checked_looks(looks: Any) -> dict[str, bool]:
    """The looks of a saved conversation; raises ValueError if they are none."""
    if not isinstance(looks, dict) or not all(isinstance(v, bool) for v in looks.values()):
        raise ValueError("looks: expected an object of true and false")
    unknown = next((k for k in looks if k not in LOOKS), None)
    if unknown is not None:
        raise ValueError(f"looks: there is no {unknown!r:.40}, expected {', '.join(LOOKS)}")
    return dict(looks)


def _checked_experts(experts: Any) -> dict[str, float | str] | None:
    # Whether the model has them is seen when they are set.
    if experts is None:
        return None
    if not isinstance(experts, dict) or not all(
        isinstance(v, int | float | str) and not isinstance(v, bool) for v in experts.values()
    ):
        raise ValueError('experts: expected an object of weights and biases, {"math": 1, ...}')
    return dict(experts)


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """A copy of messages that a template takes.

    Raises:
        ValueError: they are no messages, or user and assistant do not take turns.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError("expected a list")
    expected = "user"
    out = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise ValueError(f'number {i} is not {{"role": one of {", ".join(_ROLES)}, ...}}')
        texts = {k: v for k, v in message.items() if k in ("content", "reasoning_content")}
        if not all(isinstance(v, str) for v in texts.values()) or "content" not in texts:
            raise ValueError(f"number {i} has no text as its content")
        role = message["role"]
        if role == "system" and i > 0:
            raise ValueError(f"number {i} is a system message, expected only the first to be one")
        if role != "system":
            if role != expected:
                raise ValueError(f"number {i} is of the {role}, expected the {expected}")
            expected = "assistant" if role == "user" else "user"
        out.append({"role": role, **texts})
    if expected == "assistant":
        raise ValueError("the last one is a question without an answer")
    return out


class SessionFile:
    """The file of --session: read at the start if it exists, written after each turn.

    Raises:
        FormatError: it exists and is no conversation; it is left as it is.
        OSError: it cannot be read, or its folder cannot be written to.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen = self._state()
        self.start: Conversation | None = None
        if self._seen is not None:
            self.start = load_conversation(path)
        folder = os.path.dirname(os.path.realpath(path))  # noqa: PTH120
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "a session cannot be saved in this folder", folder)

    def save(self, conversation: Conversation) -> None:
        """Writes the conversation.

        Raises:
            FormatError: another program has changed the file since; it is left as it is.
            OSError: it cannot be written.
        """
        if self._state() != self._seen:
            raise FormatError(
                f"{self.path}: another program has changed it since, so it is left as it is: "
                "/save to another file",
                file=self.path,
            )
        save_conversation(self.path, conversation)
        self._seen = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            info = os.stat(self.path)  # noqa: PTH116 (the path may be relative to a folder that is left)
        except FileNotFoundError:
            return None
        return info.st_ino, info.st_size, info.st_mtime_ns
