"""The chat: messages, turns and commands, between a reader of what is typed and streams for what is shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from sardine_gguf.chat_commands import Leave, split_command
from sardine_gguf.chat_commands_all import COMMANDS
from sardine_gguf.chat_session import Conversation, SessionFile
from sardine_gguf.chat_settings import LOOKS, Looks, checked_settings
from sardine_gguf.chat_stats import stats_parts
from sardine_gguf.chat_turn import Output, Turn, run_turn
from sardine_gguf.errors import ContextOverflow, FormatError, SardineError
from sardine_gguf.generation import Generation
from sardine_gguf.markdown_view import MarkdownPrinter
from sardine_gguf.model import Sardine
from sardine_gguf.program import error_text
from sardine_gguf.routes import Routes
from sardine_gguf.system_prompt import prepared
from sardine_gguf.terminal import (
    DIM,
    RESET,
    ColourMode,
    Printer,
    clean,
    clean_line,
    line_width,
    moves_cursor,
    wants_colour,
)
from sardine_gguf.transcript import Transcript
from sardine_gguf.units import count_text
from sardine_gguf.waiting import Waiting
from sardine_gguf.wrapping import joined, wrapped


class Chat:
    """One conversation.

    Args:
        context: the model's context that answers; also under the name `model`.
        options: GenerationOptions of every turn.
        fixed: names of looks, and "experts", that were asked for now and that a session does not change.
        system: the system message.
        instructions: what the template would say itself instead of a system message, put after one.
        read: returns the next message or command; raises EOFError and KeyboardInterrupt as input() does.
        out, err: where answers and notes go; None takes the standard streams.
        session: file that is written after each turn.
        transcript: text file that gets each turn.

    Attributes:
        last: the last turn, None before the first.
        attached: texts that go before the next message.
        unset_experts: settings of the conversation that this model cannot take, and that are saved again.
        busy: entered by the loop while it does not read; what keeps typed keys from the screen.
        piece_style: asked before each piece for the SGR sequence that colours it; only with colours.
        on_evaluated: called with the tokens of each evaluation of a turn and their routes, as
            `Generation.on_evaluated`; what a piece was drawn from before the piece.
        before_turn, after_turn: called around each turn; what the second return is shown, "" is nothing.
        stats_parts: what they return becomes a part of the stats line.
    """

    def __init__(
        self,
        context: Sardine,
        *,
        options: dict[str, Any] | None = None,
        system: str | None = None,
        instructions: str | None = None,
        looks: Looks | None = None,
        fixed: Iterable[str] = (),
        read: Callable[[], str] | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
        colour: ColourMode = "auto",
        session: SessionFile | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        self.context = self.model = context
        self.options = {k: v for k, v in (options or {}).items() if v is not None}
        self.looks = looks or Looks()
        self.out, self.err = out or sys.stdout, err or sys.stderr
        self.colour_mode: ColourMode = colour
        self.colour = wants_colour(self.out, colour)
        self.messages: list[dict[str, Any]] = []
        self.attached: list[str] = []
        self.unset_experts: dict[str, float | str] = {}
        self.last: Turn | None = None
        self.read = read or _no_reader
        self._instructions = instructions
        self._session, self._transcript = session, transcript
        self._anew = 0
        self._in_loop = False
        self.piece_style: Callable[[], str] | None = None
        self.on_evaluated: list[Callable[[list[int], Routes], None]] = []
        self.before_turn: list[Callable[[], None]] = []
        self.after_turn: list[Callable[[Turn], str]] = []
        self.stats_parts: list[Callable[[Turn], str]] = []
        self.busy: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        if session and session.start:
            self.resume(session.start, quiet_settings=self.options, fixed=fixed)
        if system is not None:
            self.system = system
        self._saved = self._snapshot()

    # ---- the conversation ----

    @property
    def system(self) -> str | None:
        """The system message. Setting it puts another first, None removes it."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Forgets all but the system message, and empties the context."""
        self.messages = self.messages[: self.system is not None]
        self.attached = []
        self.context.reset()

    def conversation(self) -> Conversation:
        """What /save writes."""
        kept = {k: v for k, v in self.options.items() if isinstance(v, int | float | None)}
        looks = {name: getattr(self.looks, name) for name in LOOKS}
        experts = dict(self.context.experts) if self.context.expert_names else None
        experts = experts or self.unset_experts or experts
        return Conversation(list(self.messages), kept, self._name(), experts, looks)

    def resume(
        self,
        conversation: Conversation,
        quiet_settings: Mapping[str, Any] | None = None,
        fixed: Iterable[str] = (),
    ) -> None:
        """Takes the place of this conversation. Experts that this model does not have are told.

        Args:
            quiet_settings: options that were asked for now and win over saved ones.
            fixed: looks, and "experts", that stay as they are.

        Raises:
            FormatError: a saved setting is not known or out of range; nothing changes.
        """
        try:
            settings = checked_settings(conversation.settings)
        except ValueError as e:
            name = conversation.path or "the saved conversation"
            raise FormatError(f"{name}: bad settings: {e}", file=conversation.path) from None
        fixed = set(fixed)
        self.unset_experts = {}
        steered = "" if "experts" in fixed else self._steer(conversation.experts)
        self.messages = list(conversation.messages)
        self.options = {**self.options, **settings, **(quiet_settings or {})}
        for look, on in conversation.looks.items():
            if look not in fixed and not (look == "markdown" and self.piece_style):
                setattr(self.looks, look, on)
        turns = sum(m["role"] == "user" for m in self.messages)
        other = conversation.model and conversation.model != self._name()
        held = f", held with {clean_line(conversation.model)}" if other else ""
        self.say(f"(goes on after {count_text(turns, 'turn')}{held}{steered})")

    def _steer(self, experts: Mapping[str, float | str] | None) -> str:
        """Takes saved settings of experts; returns what there is to say of them."""
        if experts is None or (not experts and not self.context.expert_names):
            return ""
        try:
            self.context.experts = dict(experts)
        except ValueError as e:
            self.unset_experts = dict(experts)
            return f"; its experts are not set here: {e}"
        said = self.context.expert_settings(experts).text(self.context.expert_names)
        return f"; experts {said}" if said else ""

    def _name(self) -> str:
        return str(self.context.metadata.get("general.name", ""))

    # ---- turns ----

    def ask(self, text: str) -> Turn:
        """Sends a message. If nothing of an answer comes, or an error, the message is taken back."""
        attached, self.attached = self.attached, []
        self.messages.append({"role": "user", "content": "\n\n".join([*attached, text])})
        answered = False
        try:
            turn = self._answer(self.options)
            answered = bool(turn.answer)
        finally:
            if not answered:  # templates want user and assistant to take turns
                self.messages.pop()
                self.attached = attached
        return turn

    def regenerate(self) -> Turn:
        """Takes the last answer back and asks again; the old one stays if nothing new comes."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ValueError("there is no answer yet that could be given anew")
        old = self.messages.pop()
        self._anew += 1
        seed = self.options.get("seed", self.context.sampling.seed)
        more = {"seed": seed + self._anew} if seed >= 0 else {}  # the same seed gives the same text
        answered = False
        try:
            turn = self._answer({**self.options, **more})
            answered = bool(turn.answer)
        finally:
            if not answered:
                self.messages.append(old)
        return turn

    def _answer(self, options: dict[str, Any]) -> Turn:
        messages = prepared(self.messages, self._instructions)
        # `prepared` did what think_prompt would do.
        turn = self.run(self.context.start_chat(messages, think_prompt=False, **options))
        if turn.answer:
            if self._transcript:
                self._transcript.add(str(self.messages[-1]["content"]), turn.answer)
            self.messages.append(turn.message)
        self.report(turn)
        return turn

    def run(self, generation: Generation) -> Turn:
        """Runs and shows a generation."""
        for call in self.before_turn:
            call()
        if self.on_evaluated:
            generation.on_evaluated = self._evaluated
        reading = f"reading {count_text(generation.timings.prompt_tokens, 'token')}"
        with Waiting(reading, stream=self.err) as waiting:
            turn = run_turn(generation, self._output(), on_first=waiting.stop)
        self.last = turn
        return turn

    def _evaluated(self, tokens: list[int], routes: Routes) -> None:
        for call in self.on_evaluated:
            call(tokens, routes)

    def _output(self) -> Output:
        terminal = self.out.isatty() or self.colour_mode == "on"
        # Beside an answer on a terminal thoughts are dim; where only the answer is wanted they are elsewhere.
        thoughts = None if not self.looks.thinking else self.out if terminal else self.err
        if self.looks.markdown and moves_cursor(self.out):
            return MarkdownPrinter(self.out, thoughts, colour=self.colour_mode)
        return Printer(self.out, thoughts, colour=self.colour_mode, style=self.piece_style)

    def report(self, turn: Turn) -> None:
        """Notes after a turn: why it ended, what others have to say, counts and rates."""
        if turn.interrupted:
            self.say("(stopped)")
        elif turn.generation.finish_reason == "length":
            if self.context.n_tokens >= self.context.n_ctx:
                self.say(f"(cut: the context of {count_text(self.context.n_ctx, 'token')} is full)")
            elif self._in_loop:  # elsewhere who asked for a number of tokens knows it
                self.say("(cut: max tokens)")
        if self._in_loop and not turn.answer:
            self.say("(no answer: the message is taken back)")
        for call in self.after_turn:
            self.say(call(turn))
        if self.looks.timings:
            parts = stats_parts(turn, self.context, self.stats_words())
            self._note(joined(parts, " | ", line_width(self.err)))

    def stats_words(self) -> list[str]:
        """What others add to the stats of the last turn."""
        return [call(self.last) for call in self.stats_parts] if self.last else []

    # ---- the terminal ----

    def say(self, text: str, *, as_it_is: bool = False) -> None:
        """A note, apart from the answer; nothing for "".

        Args:
            as_it_is: without line breaks of its own.
        """
        if text:
            safe = clean(text)
            self._note(safe if as_it_is else wrapped(safe, line_width(self.err)))

    def _note(self, text: str) -> None:
        safe = clean(text)
        colour = wants_colour(self.err, self.colour_mode)
        print(f"{DIM}{safe}{RESET}" if colour else safe, file=self.err, flush=True)

    def take(self, text: str) -> None:
        """Runs a command or sends a message.

        Raises:
            Leave: the command ends the chat.
            ValueError, SardineError, OSError: it failed; the conversation is as before.
        """
        command = split_command(text, COMMANDS)
        if command is None:
            text = text.strip()
            if text:
                self.ask(text[1:] if text.startswith("//") else text)
            return
        found = COMMANDS.find(command[0])
        if command[1] and not found.takes_text:
            raise ValueError(f"{command[0]} takes nothing after it")
        found.run(self, command[1])

    def loop(self, *, single_turn: bool = False) -> None:
        """Reads and answers until the end of the input or /exit, or to the first turn's end."""
        self._in_loop = True
        self.say("Type a message, /help for commands.")
        while True:
            try:
                text = self.read()
            except KeyboardInterrupt:
                self.say("Ctrl-D or /exit leaves.")
                continue
            except EOFError:
                return
            before = self.last
            try:
                with self.busy():
                    self.take(text)
            except Leave:
                return
            except BrokenPipeError:
                raise
            except KeyboardInterrupt:  # outside of the answer itself
                self.say("(stopped)")
            except (SardineError, ValueError, OSError, MemoryError) as e:
                full = "; /clear starts over, and -c N at the start gives more room"
                hint = full if isinstance(e, ContextOverflow) else ""
                self.say(f"error: {error_text(e)}{hint}")
            self._autosave()
            if single_turn and self.last is not before:
                return

    def save_session(self) -> None:
        """Writes the file of --session if anything has changed.

        Raises:
            FormatError: another program has changed it.
            OSError: it cannot be written.
        """
        now = self._snapshot()
        if self._session is not None and now != self._saved:
            self._session.save(self.conversation())
            self._saved = now

    def _autosave(self) -> None:
        # An error is a note here: the chat goes on.
        try:
            self.save_session()
        except (OSError, SardineError) as e:
            self.say(f"error: the session is not saved: {error_text(e)}")

    def _snapshot(self) -> object:
        c = self.conversation()
        return [dict(m) for m in c.messages], dict(self.options), c.experts, c.looks


def _no_reader() -> str:
    raise EOFError
