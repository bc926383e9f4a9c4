"""Editing on a terminal, by prompt_toolkit: history, completion, messages of several lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth

from sardine_gguf.chat_commands import COMMANDS, PATHS
from sardine_gguf.composing import is_complete, message
from sardine_gguf.terminal import BOLD, RESET

if TYPE_CHECKING:
    from sardine_gguf.chat_loop import Chat


def history_path() -> Path:
    """Where typed messages are remembered, by the XDG rules."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "sardine_gguf" / "history"


class PrivateHistory(FileHistory):
    """A history file that only its owner reads; a disk that is full or read-only ends nothing."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        """Appends an entry; what cannot be written is still remembered until the end."""
        try:
            super().store_string(string)
        except OSError:
            return


def open_history(path: Path | None) -> History:
    """The history of a file; of this run alone for None, or if the file cannot be written."""
    if path is None:
        return InMemoryHistory()
    try:
        return PrivateHistory(path)
    except OSError:
        return InMemoryHistory()


class ChatCompleter(Completer):
    """Commands, what may follow them, and file names."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What could follow the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            for command in COMMANDS:
                for known in command.names:
                    if known.startswith(name):
                        yield Completion(
                            known, start_position=-len(name), display_meta=command.summary
                        )
            return
        found = COMMANDS.get(name)
        if found is None or found.complete is None:
            return
        if found.complete is PATHS:
            rest_only = Document(rest, len(rest))
            yield from self._paths.get_completions(rest_only, complete_event)
            return
        word = rest.rsplit(" ", 1)[-1]
        for candidate in found.complete(self._chat):
            if candidate.startswith(word):
                yield Completion(candidate, start_position=-len(word))


def key_bindings(*, multiline: bool) -> KeyBindings:
    """Enter sends or begins a line, Alt-Enter does the other, Ctrl-G opens $EDITOR."""
    keys = KeyBindings()
    completing = Condition(lambda: get_app().current_buffer.complete_state is not None)

    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter", filter=~completing & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        command = buffer.text.startswith("/") and "\n" not in buffer.text
        at_end = buffer.document.is_cursor_at_the_end
        if at_end and not is_complete(buffer.text):
            if buffer.text.endswith("\\") and not buffer.text.lstrip().startswith('"""'):
                buffer.delete_before_cursor()
            new_line(event)
        elif multiline and not command:
            new_line(event)
        else:
            send(event)

    @keys.add("enter", filter=completing & ~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None  # takes what is chosen

    keys.add("escape", "enter", filter=~is_searching)(send if multiline else new_line)

    @keys.add("c-g", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)

    return keys


def terminal_reader(
    chat: Chat, *, history: Path | None, multiline: bool = False
) -> Callable[[], str]:
    """Reads messages with editing.

    Args:
        history: file of earlier messages; None keeps them to the end of this run.
        multiline: Enter begins a new line and Alt-Enter sends.
    """
    session: PromptSession[str] = PromptSession(
        history=open_history(history),
        completer=ChatCompleter(chat),
        complete_while_typing=False,
        key_bindings=key_bindings(multiline=multiline),
        multiline=True,
        prompt_continuation="  ",
        enable_suspend=True,
        color_depth=None if chat.colour else ColorDepth.DEPTH_1_BIT,
    )
    prompt = ANSI(f"{BOLD}> {RESET}") if chat.colour else "> "
    return lambda: message(session.prompt(prompt))
