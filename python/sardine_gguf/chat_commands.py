"""The registry of the chat's commands. Modules add theirs; chat_commands_all imports them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat

Action = Callable[["Chat", str], None]
Completion = Callable[["Chat"], Iterable[str]]


class Leave(Exception):
    """Raised by a command that ends the chat."""


def PATHS(_: Chat) -> Iterable[str]:
    """As `complete`: the command takes the name of a file."""
    return ()


@dataclass(frozen=True)
class Command:
    """A command of the chat.

    Attributes:
        names: the first is its own, others are aliases.
        usage: what may follow the name, "" for nothing.
        run: takes the chat and what followed the name, stripped. A ValueError, SardineError or OSError that
            it raises becomes one line.
        complete: words that may follow, for the Tab key; PATHS for files.
    """

    names: tuple[str, ...]
    usage: str
    summary: str
    run: Action
    complete: Completion | None = None

    @property
    def takes_text(self) -> bool:
        """Whether something may follow the name."""
        return bool(self.usage)


class Commands:
    """Commands by name, in the order in which they were added."""

    def __init__(self) -> None:
        self._by_name: dict[str, Command] = {}

    def add(
        self,
        *names: str,
        usage: str = "",
        summary: str,
        complete: Completion | None = None,
    ) -> Callable[[Action], Action]:
        """Decorator that adds a function as a command.

        Raises:
            ValueError: a name is taken, or is no slash and small letters.
        """

        def register(run: Action) -> Action:
            command = Command(names, usage, summary, run, complete)
            for name in names:
                if not re.fullmatch(r"/([a-z]+|\?)", name) or name in self._by_name:
                    raise ValueError(f"the command {name} is taken, or no slash and small letters")
                self._by_name[name] = command
            return run

        return register

    def __iter__(self) -> Iterator[Command]:
        return iter(dict.fromkeys(self._by_name.values()))

    def names(self) -> list[str]:
        """Every name and alias."""
        return list(self._by_name)

    def get(self, name: str) -> Command | None:
        """The command of a name or alias."""
        return self._by_name.get(name)

    def find(self, name: str) -> Command:
        """The same. Raises ValueError, with the nearest name, if there is none."""
        command = self._by_name.get(name)
        if command is None:
            near = difflib.get_close_matches(name, self._by_name, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise ValueError(f"there is no command {name}: {hint} (//... sends it as a message)")
        return command


def split_command(text: str, commands: Commands) -> tuple[str, str] | None:
    """Name and rest of a typed command, None for a message.

    A command begins with a slash and a word without another slash, so that a path can begin a message.
    Several lines are a command only if there is one of that name.
    """
    match = re.fullmatch(r"(/(?:[A-Za-z]+|\?))(?:\s+(.*))?", text.strip(), re.DOTALL)
    if not match or ("\n" in text.strip() and commands.get(match[1].lower()) is None):
        return None
    return match[1].lower(), (match[2] or "").strip()


COMMANDS = Commands()
