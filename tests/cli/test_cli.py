"""sardine-cli as a program: one-shot and piped use, exit codes, and a chat on a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_mutate import Gguf
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import _native
from sardine_gguf.convert import convert, write_base

CLI = [sys.executable, "-m", "sardine_gguf.cli"]
PROMPT = "1m>"  # as prompt_toolkit draws it in bold


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: its answers are noise, but real tokens."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_base(folder / "base", hidden=32, inner=48, layers=2, seed=2)
    srde_checkpoint(folder / "srde_weights.pt", folder / "base")
    convert(folder / "base", folder / "srde_weights.pt", folder / "m.gguf", outtype="f32")
    return folder / "m.gguf"


def cli(
    *args: object, stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, args)],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


def test_one_shot_is_deterministic_and_only_the_answer_is_on_stdout(model_file: Path) -> None:
    runs = [cli("-m", model_file, "-p", "hi", "-n", 12, "-s", 3, "-t", 1) for _ in range(2)]
    assert [r.returncode for r in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.strip()
    assert re.fullmatch(
        r"\[\d+ prompt tokens, [\d.]+ t/s \| 12 tokens, [\d.]+ t/s\]", runs[0].stderr.strip()
    )


def test_seed_and_mode_are_not_ignored(model_file: Path) -> None:
    base = ["-m", model_file, "-p", "hi", "-n", 24, "-t", 1, "--no-show-timings"]
    texts = {
        cli(*base, *more).stdout
        for more in (["-s", 1], ["-s", 2], ["--temp", 0], ["--temp", 0, "--delta-mode", "off"])
    }
    assert len(texts) == 4


def test_piped_text_is_one_turn(model_file: Path) -> None:
    flags = ["-m", model_file, "-n", 8, "--temp", 0, "-t", 1, "--no-show-timings"]
    piped = cli(*flags, stdin="What is 15% of 80?\n")
    flag = cli(*flags, "-p", "What is 15% of 80?")
    assert piped.returncode == 0
    assert piped.stderr == ""
    assert piped.stdout == flag.stdout != ""


def test_file_system_prompt_and_raw(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello")
    flags = ["-m", model_file, "-n", 16, "--temp", 0, "-t", 1, "--no-show-timings"]
    from_file = cli(*flags, "-f", tmp_path / "p.txt").stdout
    assert from_file == cli(*flags, "-p", "hello").stdout
    assert from_file != cli(*flags, "-p", "hello", "-sys", "be brief").stdout
    assert from_file != cli(*flags, "-p", "hello", "--raw").stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-m", "{m}", "-p", " "], 2, "prompt is empty"),
        (["-m", "{m}", "-p", "x", "--temp", "-1"], 2, "temperature is -1"),
        (["-m", "{m}", "-p", "x", "--top-p", "1.5"], 2, "top_p is 1.5"),
        (["-m", "{m}", "-p", "x", "-t", "0"], 2, "n_threads is 0"),
        (["-m", "{m}", "-p", "x", "-c", "-5"], 2, "n_ctx is -5"),
        (["-m", "{m}", "-p", "x", "-b", "0"], 2, "n_batch is 0"),
        (["-m", "{m}", "--delta-mode", "dense"], 2, "invalid choice"),
        (["-p", "x"], 2, "-m/--model"),
        (["-m", "{dir}/none.gguf", "-p", "x"], 4, "No such file"),
        (["-m", "{dir}", "-p", "x"], 4, "directory"),
        (["-m", "{dir}/srde_weights.pt", "-p", "x"], 3, "not a GGUF file"),
        (["-m", "{m}", "-p", "x " * 400], 1, "more than n_ctx"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    model_file: Path, args: list[str], code: int, message: str
) -> None:
    filled = [a.format(m=model_file, dir=model_file.parent) for a in args]
    result = cli(*filled)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_version_and_help_need_no_model() -> None:
    assert cli("--version").stdout.startswith("sardine-cli ")
    assert "--delta-mode" in cli("--help").stdout


def test_a_reader_that_leaves_causes_no_traceback(model_file: Path) -> None:
    command = " ".join([*CLI, "-m", str(model_file), "-p", "hi", "-n", "200", "-t", "1"])
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -c 5 >/dev/null"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


class Terminal:
    """sardine-cli on a pseudo-terminal."""

    def __init__(self, args: list[str], home: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            env = {
                **os.environ,
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "XDG_STATE_HOME": str(home),
            }
            os.execvpe(sys.executable, [*CLI, *args], env)
        self.output = ""
        self._seen = 0

    def read_until(self, text: str, timeout: float = 60) -> str:
        """Reads until `text` comes after the last match; returns what came, `text` included."""
        end = time.monotonic() + timeout
        while (found := self.output.find(text, self._seen)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come; the terminal shows:\n{self.output}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    data = os.read(self.fd, 4096).decode("utf-8", "replace")
                except OSError:
                    data = ""
                assert data, f"the program ended before {text!r}:\n{self.output}"
                self.output += data
        came = self.output[self._seen : found + len(text)]
        self._seen = found + len(text)
        return came

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self, timeout: float = 30) -> int:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.output += os.read(self.fd, 4096).decode("utf-8", "replace")
                except OSError:
                    time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"the program did not end:\n{self.output}")


def test_a_chat_on_a_terminal(model_file: Path, tmp_path: Path) -> None:
    chat = Terminal(["-m", str(model_file), "-n", "12", "-s", "1", "-t", "1"], tmp_path)
    facts = chat.read_until("/help for commands")
    assert "experts: 6, 2 a token" in facts
    chat.read_until(PROMPT)
    chat.type("hello\r")
    assert "12 tokens" in chat.read_until("t/s]")
    chat.read_until(PROMPT)
    chat.type("/nonsense\r")
    chat.read_until("There is no command /nonsense")
    chat.read_until(PROMPT)
    chat.type("/help\r")
    chat.read_until("/clear")
    chat.read_until(PROMPT)
    chat.type("/clear\r")
    chat.read_until("forgotten")
    chat.read_until(PROMPT)
    chat.type("\x03")
    chat.read_until("Ctrl-D or /exit leaves")
    chat.type("/exit\r")
    assert chat.wait() == 0
    assert "hello" in (tmp_path / "sardine_gguf" / "history").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_program(model_file: Path, tmp_path: Path) -> None:
    chat = Terminal(["-m", str(model_file), "-c", "400000", "--temp", "0", "-t", "1"], tmp_path)
    chat.read_until(PROMPT)
    chat.type("hello\r")
    time.sleep(1)  # greedy, this model runs in a circle until the context of 400,000 ends
    chat.type("\x03")
    stopped = chat.read_until("t/s]")
    assert "(stopped)" in stopped
    chat.read_until(PROMPT)
    chat.type("/exit\r")
    assert chat.wait() == 0


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template begins the thoughts, so that it thinks without having learned to."""
    path = tmp_path_factory.mktemp("thinker") / "m.gguf"
    base = Path(__file__).parents[2] / "examples" / "tiny-sardine" / "base"
    write_base(base, path, "q8_0", n_threads=1)
    g = Gguf.parse(path.read_bytes())
    template = (base / "chat_template.jinja").read_text() + "{{ '[THINK]' }}"
    g.set("tokenizer.chat_template", "str", template)
    path.write_bytes(g.build())
    return path


def test_thoughts_off_a_terminal(thinker: Path) -> None:
    """On standard error, hidden, or in the answer; a budget forces the answer."""
    flags = ["-m", thinker, "-p", "Hi", "-n", 24, "--temp", 0, "-t", 1, "--no-show-timings"]
    shown = cli(*flags, "--reasoning-budget", 4)
    assert shown.stderr.strip()
    assert shown.stdout.strip()
    hidden = cli(*flags, "--reasoning-budget", 4, "--hide-thinking")
    assert (hidden.stdout, hidden.stderr) == (shown.stdout, "")
    joined = cli(*flags, "--reasoning-budget", 4, "--reasoning-format", "none")
    assert joined.stderr == ""
    assert joined.stdout == shown.stderr.removesuffix("\n") + "[/THINK]" + shown.stdout
    none = cli(*flags, "--reasoning-budget", 0)
    assert none.stderr.strip() == ""
    assert cli(*flags, "--reasoning-budget", -2).returncode == 2


def test_thoughts_on_a_terminal_are_dim(thinker: Path, tmp_path: Path) -> None:
    args = ["-m", str(thinker), "-n", "24", "--temp", "0", "-t", "1", "--reasoning-budget", "4"]
    one_shot = Terminal([*args, "-p", "Hi"], tmp_path)
    thoughts = one_shot.read_until("\x1b[0m").partition("\x1b[2m")[2]
    assert thoughts.removesuffix("\x1b[0m").strip()
    assert one_shot.wait() == 0
    chat = Terminal([*args, "--hide-thinking"], tmp_path)
    chat.read_until(PROMPT)
    chat.type("Hi\r")
    shown = chat.read_until("t/s]")
    assert thoughts.removesuffix("\x1b[0m").strip() not in shown
    chat.read_until(PROMPT)
    chat.type("/exit\r")
    assert chat.wait() == 0


def test_verbose_shows_what_libllama_says(model_file: Path) -> None:
    flags = ["-m", model_file, "-p", "hi", "-n", 2, "-t", 1]
    assert "DEBUG: " in cli(*flags, "-v").stderr
    assert "DEBUG" not in cli(*flags).stderr


@pytest.mark.skipif(_native.find_gpus()["has_kernels"], reason="this build has CUDA kernels")
@pytest.mark.parametrize("layers", ["all", "auto", "1"])
def test_a_gpu_that_is_not_there(model_file: Path, layers: str) -> None:
    """One line that says what to install."""
    result = cli("-m", model_file, "-p", "hi", "-ngl", layers)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert "-DGGML_CUDA=on" in result.stderr


@pytest.mark.parametrize("layers", ["some", "-2", "1.5", ""])
def test_bad_numbers_of_gpu_layers(model_file: Path, layers: str) -> None:
    result = cli("-m", model_file, "-p", "hi", f"-ngl={layers}")
    assert result.returncode == 2
    assert "-ngl" in result.stderr
