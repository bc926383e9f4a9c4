"""The interactive chat: a thin loop around Sardine.start_chat."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sardine_gguf.errors import ContextOverflow, SardineError
from sardine_gguf.generation import Generation
from sardine_gguf.model import Sardine
from sardine_gguf.terminal import BOLD, DIM, RESET, Printer, wants_colour

HELP = """\
/help, /?     this text
/clear        forget the conversation
/exit, /bye   leave (also Ctrl-D)
Ctrl-C        stop an answer; what was said of it is kept
Alt-Enter     new line in a message"""


def stats_line(generation: Generation) -> str:
    """Counts and rates of one answer, for people."""
    t = generation.timings
    cached = f", {t.cached_tokens} cached" if t.cached_tokens else ""
    return (
        f"[{t.prompt_tokens} prompt tokens{cached}, {t.prompt_per_second:.1f} t/s | "
        f"{t.completion_tokens} tokens, {t.completion_per_second:.1f} t/s]"
    )


@dataclass
class Turn:
    """What came of one generation: the answer, the thoughts before it, whether Ctrl-C stopped it."""

    answer: str = ""
    thoughts: str = ""
    interrupted: bool = False

    @property
    def message(self) -> dict[str, str]:
        """The assistant's message. Thoughts stay in the context, which the next turn then continues."""
        message = {"role": "assistant", "content": self.answer}
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        return message


def run_turn(generation: Generation, printer: Printer) -> Turn:
    """Runs a generation and prints it as it goes."""
    turn = Turn()
    try:
        for channel, text in generation:
            printer.write(channel, text)
            if channel == "content":
                turn.answer += text
            else:
                turn.thoughts += text
    except KeyboardInterrupt:
        turn.interrupted = True
    finally:
        generation.close()
    printer.end()
    return turn


class Chat:
    """One conversation on a terminal.

    Args:
        options: sampling options and max_tokens of every answer.
        read: returns the next line typed; raises EOFError and KeyboardInterrupt as input() does.
    """

    def __init__(
        self,
        model: Sardine,
        *,
        system: str | None = None,
        show_stats: bool = True,
        hide_thinking: bool = False,
        read: Callable[[], str] | None = None,
        **options: Any,
    ) -> None:
        self._model, self._options, self._show_stats = model, options, show_stats
        self._hide_thinking = hide_thinking
        self._start: list[dict[str, Any]] = (
            [{"role": "system", "content": system}] if system else []
        )
        self.messages = list(self._start)
        self._read = read or terminal_reader()
        self._commands: dict[str, Callable[[], bool]] = {
            "/help": self._help,
            "/?": self._help,
            "/clear": self._clear,
            "/exit": lambda: False,
            "/bye": lambda: False,
        }

    def run(self) -> None:
        """Reads and answers until the end of the input or /exit."""
        self._say("Type a message, /help for commands.")
        while True:
            try:
                line = self._read().strip()
            except KeyboardInterrupt:
                self._say("Ctrl-D or /exit leaves.")
                continue
            except EOFError:
                return
            if line.startswith("/") and " " not in line:
                command = self._commands.get(line)
                if command is None:
                    self._say(f"There is no command {line}; /help lists them.")
                elif not command():
                    return
            elif line:
                before = len(self.messages)
                try:
                    self._answer(line)
                except KeyboardInterrupt:  # outside of the answer itself
                    del self.messages[before:]
                    self._say("(stopped)")

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        printer = Printer(sys.stdout, None if self._hide_thinking else sys.stdout)
        try:
            generation = self._model.start_chat(self.messages, **self._options)
            turn = run_turn(generation, printer)
        except (SardineError, ValueError) as e:
            self.messages.pop()
            hint = " /clear starts over." if isinstance(e, ContextOverflow) else ""
            self._say(f"error: {e}{hint}")
            return
        if turn.answer:
            self.messages.append(turn.message)
        else:
            self.messages.pop()  # templates want user and assistant to take turns
        if turn.interrupted:
            self._say("(stopped)")
        elif generation.finish_reason == "length":
            self._say("(cut: max tokens or the context's end)")
        if self._show_stats:
            self._say(stats_line(generation))

    def _help(self) -> bool:
        self._say(HELP)
        return True

    def _clear(self) -> bool:
        self.messages = list(self._start)
        self._model.reset()
        self._say("(the conversation is forgotten)")
        return True

    @staticmethod
    def _say(text: str) -> None:
        colour = wants_colour(sys.stderr)
        print(f"{DIM}{text}{RESET}" if colour else text, file=sys.stderr, flush=True)


def history_path() -> Path:
    """Where typed messages are remembered, by the XDG rules."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "sardine_gguf" / "history"


def terminal_reader() -> Callable[[], str]:
    """Line editing, history and Alt-Enter for new lines, by prompt_toolkit."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import ANSI
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History
    try:
        path = history_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        history = FileHistory(str(path))
    except OSError:
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(history=history, key_bindings=keys)
    prompt = ANSI(f"{BOLD}> {RESET}") if wants_colour(sys.stdout) else "> "
    return lambda: session.prompt(prompt)
