"""Terminals for tests: one emulated in this process (pyte), one real (tmux), with the same methods."""

from __future__ import annotations

import os
import pty
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fcntl import ioctl
from pathlib import Path
from struct import pack

import pyte

CLI = [sys.executable, "-m", "sardine_gguf.cli"]
PATIENCE = 60.0  # seconds until a test gives up; never a measure of anything
HISTORY = 50_000  # lines kept when they have scrolled away
_KEYS = {
    "Enter": "\r", "Tab": "\t", "Escape": "\x1b", "Up": "\x1b[A", "Down": "\x1b[B", "Left": "\x1b[D",
    "Home": "\x1b[H", "C-a": "\x01", "C-c": "\x03", "C-d": "\x04", "C-g": "\x07", "C-r": "\x12",
    "M-Enter": "\x1b\r",
}  # fmt: skip


class Terminal(ABC):
    """A program on a terminal.

    Args:
        argv: the program and its arguments.
        env: variables beside those of this process.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], rows: int = 50, columns: int = 110
    ) -> None:
        self.rows, self.columns = rows, columns
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_ARG", "NO_COLOR"))},
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "LC_ALL": "C.UTF-8",
            **env,
        }
        self._start(list(argv))

    @abstractmethod
    def _start(self, argv: list[str]) -> None: ...

    @abstractmethod
    def send(self, text: str) -> None:
        """Types characters."""

    @abstractmethod
    def lines(self) -> list[str]:
        """What was shown: lines that have scrolled away, and the screen."""

    @abstractmethod
    def cursor(self) -> tuple[str, int]:
        """The cursor's line and its column."""

    @abstractmethod
    def exit_code(self) -> int | None:
        """None while the program runs."""

    @abstractmethod
    def close(self) -> None:
        """Ends the program."""

    @abstractmethod
    def paste(self, text: str) -> None:
        """Pastes, bracketed."""

    @abstractmethod
    def _turn(self) -> None:
        """Waits a moment for the program."""

    def key(self, *names: str) -> None:
        """Presses keys, named as tmux names them."""
        for name in names:
            self.send(_KEYS[name])

    def text(self) -> str:
        """All that was shown."""
        return "\n".join(line.rstrip() for line in self.lines()).rstrip()

    def wait(self, until: Callable[[], object], what: str) -> None:
        """Waits until `until` holds."""
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, f"{what} did not come:\n{self.text()}"
            self._turn()

    def wait_for(self, text: str, times: int = 1) -> str:
        """Waits until a text was shown so often; returns all that was shown."""
        self.wait(lambda: self.text().count(text) >= times, repr(text))
        return self.text()

    def at_prompt(self) -> bool:
        """Whether the program waits for a message."""
        line, column = self.cursor()
        return line.rstrip() == ">" and column == 2

    def wait_for_prompt(self) -> str:
        """Waits for an empty prompt; returns all that was shown."""
        self.wait(self.at_prompt, "the prompt")
        return self.text()

    def say(self, line: str) -> str:
        """Types a line and Enter, waits for the next prompt, and returns what came between."""
        self.wait_for_prompt()
        before = len(self.text())
        self.send(line)
        self.wait(lambda: self.cursor()[0].rstrip().endswith(line[-40:].rstrip()), "the echo")
        self.key("Enter")
        self.wait(lambda: len(self.text()) > before + len(line) and self.at_prompt(), "an end")
        shown = self.text()
        return shown[shown.rindex(f"> {line[:60]}") :]

    def wait_for_exit(self) -> int:
        """Waits for the program's end."""
        self.wait(lambda: self.exit_code() is not None, "the program's end")
        code = self.exit_code()
        assert code is not None
        return code


class Emulated(Terminal):
    """A pseudo-terminal, drawn by pyte. `raw` is every byte that came."""

    def _start(self, argv: list[str]) -> None:
        self.raw = b""
        self.screen = pyte.HistoryScreen(self.columns, self.rows, history=HISTORY, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self._code: int | None = None
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            try:
                os.execvpe(argv[0], argv, self.env)
            finally:
                os._exit(127)
        ioctl(self._fd, termios.TIOCSWINSZ, pack("HHHH", self.rows, self.columns, 0, 0))

    def _turn(self) -> None:
        if select.select([self._fd], [], [], 0.05)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the other end is closed
                data = b""
                time.sleep(0.02)
            self.raw += data
            self._stream.feed(data)

    def send(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data[:512]) :]
            self._turn()  # so that the pipe never fills on both sides

    def paste(self, text: str) -> None:
        self.send(f"\x1b[200~{text}\x1b[201~")

    def lines(self) -> list[str]:
        top = ["".join(row[x].data for x in range(self.columns)) for row in self.screen.history.top]
        return [*top, *self.screen.display]

    def cursor(self) -> tuple[str, int]:
        return self.screen.display[self.screen.cursor.y], self.screen.cursor.x

    def exit_code(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                while select.select([self._fd], [], [], 0)[0]:
                    before = len(self.raw)
                    self._turn()
                    if len(self.raw) == before:
                        break
        return self._code

    def close(self) -> None:
        if self.exit_code() is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._code = -signal.SIGKILL
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Tmux(Terminal):
    """A window of a tmux server of its own."""

    def _start(self, argv: list[str]) -> None:
        self._tmux = ["tmux", "-L", f"sardine-{secrets.token_hex(6)}", "-f", os.devnull]
        self._code_file = Path(self.env["HOME"]) / f"exit-{secrets.token_hex(4)}"
        # tmux keeps its window when the program ends, and tells the shell's exit code to nobody.
        # Ctrl-C is for the program alone.
        command = f"trap : INT; {shlex.join(argv)}; echo $? > {shlex.quote(str(self._code_file))}; sleep 600"
        size = ["-x", str(self.columns), "-y", str(self.rows)]
        history = ["start-server", ";", "set-option", "-g", "history-limit", str(HISTORY), ";"]
        self._run(*history, "new-session", "-d", *size, "sh", "-c", command)

    def _run(self, *arguments: str, data: str | None = None) -> str:
        return subprocess.run(
            [*self._tmux, *arguments],
            env=self.env,
            input=data,
            text=True,
            capture_output=True,
            check=True,
            timeout=PATIENCE,
        ).stdout

    def _turn(self) -> None:
        time.sleep(0.1)

    def key(self, *names: str) -> None:
        self._run("send-keys", *names)

    def send(self, text: str) -> None:
        self._run("send-keys", "-l", "--", text)

    def paste(self, text: str) -> None:
        self._run("load-buffer", "-", data=text)
        self._run("paste-buffer", "-p")

    def lines(self) -> list[str]:
        return self._run("capture-pane", "-p", "-S", str(-HISTORY)).split("\n")

    def cursor(self) -> tuple[str, int]:
        x, y = self._run("display-message", "-p", "#{cursor_x} #{cursor_y}").split()
        screen = self._run("capture-pane", "-p").split("\n")
        return (screen[int(y)] if int(y) < len(screen) else ""), int(x)

    def colours(self) -> str:
        """The screen with its SGR sequences."""
        return self._run("capture-pane", "-p", "-e")

    def exit_code(self) -> int | None:
        try:
            return int(self._code_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], env=self.env, capture_output=True, timeout=60)


def tmux_is_missing() -> bool:
    """True without tmux; SARDINE_REQUIRE_TMUX=1 makes that an error, as in CI."""
    missing = shutil.which("tmux") is None
    assert not (missing and os.environ.get("SARDINE_REQUIRE_TMUX") == "1"), "tmux is not installed"
    return missing
