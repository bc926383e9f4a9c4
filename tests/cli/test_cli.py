"""sardine-cli as a program: one-shot and piped use, flags, exit codes."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sardine_gguf import FormatError, _native
from sardine_gguf.chat_session import SessionFile
from sardine_gguf.cli import main
from screens import CLI, Emulated


def cli(
    *args: object, stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, args)],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG")},
            **(env or {}),
        },
    )


def test_one_shot_is_deterministic_and_only_the_answer_is_on_stdout(model_file: Path) -> None:
    runs = [cli("-m", model_file, "-p", "hi", "-n", 12, "-s", 3, "-t", 1) for _ in range(2)]
    assert [r.returncode for r in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.strip()
    assert re.fullmatch(
        r"\[\d+ prompt tokens, [\d.]+ t/s \| first [\d.]+ s \| 12 tokens, [\d.]+ t/s \| "
        r"context \d+/256 \| \w+ \d+ %\]",
        runs[0].stderr.strip(),
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


def test_piped_bytes_that_are_no_text_are_refused(model_file: Path) -> None:
    done = subprocess.run(
        [*CLI, "-m", model_file, "-n", "2"], input=b"caf\xe9", capture_output=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"standard input: byte 3 is not UTF-8" in done.stderr


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
        (["-m", "{m}", "--example", "-p", "x"], 2, "both name a model"),
        (["-m", "{m}", "-p", "x", "-ctk", "q8_0", "-ctv", "f16"], 2, "one type for both"),
        (["-m", "{m}", "-p", "x", "-l", "12"], 2, "-l/--logit-bias"),
        (["-m", "{m}", "-p", "x", "-j", "{{"], 2, "it is no JSON"),
        (["-m", "{m}", "-p", "x", "--grammar", "root ::= no"], 2, "rule 'no' is not defined"),
        (["-m", "{m}", "-p", "x", "--temperatur", "1"], 2, "did you mean --temperature?"),
        (["{m}"], 2, "did you mean -m {m}?"),
        (["hello"], 2, "a model is named with -m"),
        (["-hf", "a/b", "-p", "x"], 2, "hf download a/b"),
        (["-m", "{m}", "-p", "x", "-ub", "64"], 2, "use --batch-size"),
        (["-m", "{m}", "-p", "x", "-t", "1", "-tb", "2"], 2, "use --threads"),
        (["-m", "{m}", "-p", "x", "--samplers", "top_q"], 2, "'top_q', which is not known"),
        (["-m", "{m}", "-p", "x", "-r", ""], 2, "would end every answer"),
        (["-m", "{m}", "-p", "x", "--think-prompt"], 2, "no instructions to think"),
        (["-m", "https://example.org/m.gguf", "-p", "x"], 4, "download it first"),
        (["-m", "{m}", "-p", "x", "-cnv"], 2, "use one"),
        (["-m", "{m}", "--raw", "-cnv"], 2, "use one"),
        (["-m", "{m}", "-p", "x", "--raw", "-sys", "x"], 2, "--system-prompt is for chats"),
        (["-m", "{m}", "-p", "x", "--raw", "-o", "x"], 2, "--output is for chats"),
        (["-m", "{m}", "-p", "x", "-sys", "a", "-sysf", "b"], 2, "use one"),
        (["-m", "{m}", "-p", "x", "-f", "{dir}/none.txt"], 4, "none.txt: No such file"),
        (
            ["-m", "{m}", "-p", "x", "--session", "{dir}/srde_weights.pt"],
            3,
            "no saved conversation",
        ),
        (["-m", "{m}", "-p", "x", "-o", "{dir}"], 4, "directory"),
        (["-m", "{dir}/M.gguf", "-p", "x"], 4, "did you mean {dir}/m.gguf?"),
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
    assert message.format(m=model_file, dir=model_file.parent) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_version_and_help_need_no_model() -> None:
    assert cli("--version").stdout.startswith("sardine-cli ")
    assert "--delta-mode" in cli("--help").stdout


def test_a_reader_that_leaves_causes_no_traceback(model_file: Path) -> None:
    command = " ".join([*CLI, "-m", str(model_file), "-p", "hi", "-n", "200", "-t", "1"])
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -c 5 >/dev/null"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


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


def test_thoughts_on_a_terminal_are_dim(thinker: Path, emulated: Callable[..., Emulated]) -> None:
    args = ["-m", thinker, "-n", 24, "--temp", 0, "-t", 1, "--reasoning-budget", 4, "-p", "Hi"]
    one_shot = emulated(*args)
    assert one_shot.wait_for_exit() == 0
    thoughts = one_shot.raw.partition(b"\x1b[2m")[2].partition(b"\x1b[0m")[0].decode()
    assert thoughts.strip()
    hidden = emulated(*args, "--hide-thinking")
    assert hidden.wait_for_exit() == 0
    assert thoughts.strip() not in hidden.text()
    assert hidden.text().strip()


def test_verbose_shows_what_libllama_says(model_file: Path, tmp_path: Path) -> None:
    flags = ["-m", model_file, "-p", "hi", "-n", 2, "-t", 1]
    assert "DEBUG: " in cli(*flags, "-v").stderr
    assert "DEBUG" not in cli(*flags).stderr
    assert "DEBUG: " in cli(*flags, "-lv", 5).stderr
    log = tmp_path / "log.txt"
    assert "DEBUG" not in cli(*flags, "--log-file", log, "-lv", 4).stderr
    assert "DEBUG: " in log.read_text()


def test_an_interrupted_answer_is_exit_code_130(model_file: Path) -> None:
    """What was written until then stays on standard output."""
    args = ["-m", model_file, "-p", "hi", "-c", 400000, "--temp", 0, "-t", 1, "--no-show-timings"]
    with subprocess.Popen(
        [*CLI, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout
        assert program.stderr
        begin = program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        rest = program.stdout.read()
        errors = program.stderr.read().decode()
    assert program.returncode == 130
    assert (begin + rest).endswith(b"\n")
    assert errors == "(stopped)\n"


def test_interrupted_while_the_prompt_is_read(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 30000)
    args = ["-m", model_file, "-f", tmp_path / "long.txt", "-c", 400000, "-t", 1, "-v"]
    with subprocess.Popen(
        [*CLI, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stderr
        for line in program.stderr:
            if line.startswith(b"runs: "):  # loaded; the prompt takes minutes
                break
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=120)
    # A shell says 130 of both: Python ends by the signal itself, after it was handled, if it came while a
    # dataclass of a module was being made.
    assert program.returncode in (130, -signal.SIGINT)
    assert not out.strip()
    assert b"Traceback" not in err


def test_flags_of_llama_cpp_do_something(model_file: Path, tmp_path: Path) -> None:
    """Each changes a greedy answer, or what is written beside it."""
    base = ["-m", model_file, "-n", 12, "-t", 1, "--no-show-timings"]
    greedy = [*base, "-p", "hi", "--temp", 0]
    plain = cli(*greedy).stdout
    (tmp_path / "p.txt").write_text("hi")
    (tmp_path / "g.gbnf").write_text('root ::= "yes"')
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}")
    (tmp_path / "s.txt").write_text("Be brief.\n")
    assert cli(*greedy, "--grammar", 'root ::= "no"').stdout == "no\n"
    assert cli(*greedy, "--grammar-file", tmp_path / "g.gbnf").stdout == "yes\n"
    schema = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}'
    assert json.loads(cli(*greedy[:-2], "-p", "hi", "-n", 40, "-j", schema).stdout) == {"a": 1}
    assert cli(*greedy, "-l", f"{_first_token(model_file)}-inf").stdout != plain
    for more in (
        ["--repeat-penalty", 2], ["--frequency-penalty", 9], ["--presence-penalty", 30],
        ["-sysf", tmp_path / "s.txt"], ["--chat-template-file", tmp_path / "t.jinja"],
        ["--no-experts"], ["-n", 3], ["-r", plain[1:3]],
    ):  # fmt: skip
        assert cli(*greedy, *more).stdout != plain, more
    assert cli(*greedy, "--no-experts").stdout == cli(*greedy, "--delta-mode", "off").stdout
    assert (
        cli(*greedy, "-sysf", tmp_path / "s.txt").stdout == cli(*greedy, "-sys", "Be brief.").stdout
    )
    sampled = [*base, "-p", "hi", "-s", 1]
    texts = {
        cli(*sampled, *more).stdout
        for more in ([], ["--typical", 0.05], ["--mirostat", 2], ["--mirostat", 2, "--mirostat-ent", 0.1],
                     ["--xtc-probability", 1, "--xtc-threshold", 0.0001])
    }  # fmt: skip
    assert len(texts) == 5
    # Without a temperature among them 9 does nothing, and of one token there is no choice.
    assert cli(*sampled, "--samplers", "top_k", "--top-k", 1, "--temp", 9).stdout == plain
    assert cli(*sampled, "-ub", 512, "-tb", 1, "--temp", 0).stdout == plain
    both = cli(*greedy[:-4], "-p", "hi", "-f", tmp_path / "p.txt", "--temp", 0).stdout
    assert both == cli(*base, "-p", "hi\n\nhi", "--temp", 0).stdout
    from_stdin = cli(*base, "-f", "-", "--temp", 0, stdin="hi").stdout
    assert from_stdin == plain
    out = tmp_path / "out.txt"
    cli(*greedy, "-o", out)
    assert out.read_text() == f"> hi\n\n{plain}\n"


def _first_token(model_file: Path) -> int:
    from sardine_gguf import Sardine

    with Sardine(model_file, n_threads=1) as m:
        generation = m.start_chat([{"role": "user", "content": "hi"}], temperature=0, max_tokens=1)
        list(generation)
        return generation.tokens[0]


def test_flags_from_the_environment(model_file: Path) -> None:
    env = {
        "LLAMA_ARG_MODEL": str(model_file), "LLAMA_ARG_N_PREDICT": "3", "LLAMA_ARG_CTX_SIZE": "256",
        "LLAMA_ARG_SHOW_TIMINGS": "1",
    }  # fmt: skip
    told = cli("-p", "hi", "-t", 1, env=env).stderr
    assert "| 3 tokens" in told
    assert "/256 |" in told
    assert "| 5 tokens" in cli("-p", "hi", "-t", 1, "-n", 5, env=env).stderr  # the flag wins
    assert cli("-p", "hi", "-t", 1, env={**env, "LLAMA_ARG_SHOW_TIMINGS": "off"}).stderr == ""
    bad = cli("-p", "hi", env={**env, "LLAMA_ARG_SHOW_TIMINGS": "perhaps"})
    assert bad.returncode == 2
    assert "LLAMA_ARG_SHOW_TIMINGS is perhaps" in bad.stderr
    assert cli("-p", "hi", env={**env, "LLAMA_ARG_CTX_SIZE": "many"}).returncode == 2


def test_what_needs_no_model(tmp_path: Path) -> None:
    devices = cli("--list-devices")
    assert re.fullmatch(
        r"Available devices:\n  CPU: .+ \(\d+ MiB, \d+ MiB free\)\n", devices.stdout
    )
    script = tmp_path / "complete.bash"
    script.write_text(cli("--completion-bash").stdout)
    probe = (
        f"source {script}; COMP_WORDS=(sardine-cli --delta-mode ''); COMP_CWORD=2; _sardine_cli; "
        'echo "${COMPREPLY[*]}"; COMP_WORDS=(sardine-cli --top-); COMP_CWORD=1; _sardine_cli; '
        'echo "${COMPREPLY[*]}"'
    )
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["sparse gain off", "--top-k --top-p"]


def test_without_a_model_three_lines_say_what_to_do(tmp_path: Path) -> None:
    result = subprocess.run(
        CLI, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=120
    )
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert "-m/--model" in lines[0]
    assert "sardine-cli --example" in lines[1]
    assert "sardine-cli -m FILE.gguf" in lines[2]
    assert "convert-sardine" in lines[2]
    (tmp_path / "a.gguf").write_text("<html>")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    again = subprocess.run(CLI, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert "sardine-cli -m b.gguf" in again.stderr


def test_the_example_is_converted_once(home: dict[str, str], tmp_path: Path) -> None:
    answers = [cli("--example", "-p", "What is 15% of 80?", "-t", 1, env=home) for _ in range(2)]
    assert [a.returncode for a in answers] == [0, 0]
    assert "15% of 80 is 12." in answers[0].stdout
    assert answers[0].stdout == answers[1].stdout
    cache = tmp_path / "cache" / "sardine_gguf"
    (made,) = cache.glob("*/*")
    assert made.name == "tiny-sardine.gguf"
    cache.rename(tmp_path / "away")
    cache.write_text("a file where the folder should be")
    refused = cli("--example", "-p", "hi", env=home)
    assert refused.returncode == 4
    assert len(refused.stderr.splitlines()) == 1


def test_a_full_context_is_said(model_file: Path) -> None:
    full = cli("-m", model_file, "-p", "hi", "-c", 32, "--temp", 0, "-t", 1)
    assert full.returncode == 0
    assert "(cut: the context of 32 tokens is full)" in full.stderr
    assert "context 32/32 |" in full.stderr
    long = cli("-m", model_file, "-p", "word " * 32, "-c", 32, "-t", 1)
    assert long.returncode == 1
    assert re.search(r"the prompt has \d+ tokens, more than n_ctx 32", long.stderr)


def test_rates_with_and_without_experts(model_file: Path) -> None:
    for more in ([], ["--no-experts"]):
        told = cli("-m", model_file, "-p", "hi", "-n", 4, "-t", 1, *more).stderr
        assert re.search(r"\| 4 tokens, [\d.]+ t/s \|", told)


def test_a_chat_over_a_pipe(example: Path) -> None:
    """-cnv: one message a line, the answers alone on standard output."""
    lines = "What is 15% of 80?\n/set temp 0.0\nAnd 25%?\n/exit\nnot read\n"
    done = cli("-m", example, "-cnv", "--temp", 0, "-t", 1, stdin=lines)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "10% of 80 is 8, 5% is 4, so 15% of 80 is 12.",
        "A quarter of 80 is 20, so 25% of 80 is 20.",
    ]


def test_one_answer_in_a_session(example: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    flags = ["-m", example, "--temp", 0, "-t", 1, "--no-show-timings", "--session", file]
    cli(*flags, "-p", "What is 15% of 80?")
    second = cli(*flags, stdin="And 25%?")
    assert second.stdout == "A quarter of 80 is 20, so 25% of 80 is 20.\n"
    assert [m["role"] for m in json.loads(file.read_text())["messages"]] == [
        "user",
        "assistant",
    ] * 2
    file.write_text('{"format": "sardine_gguf chat", "version": 1, "mess')
    damaged = file.read_bytes()
    refused = cli(*flags, "-p", "hi")
    assert refused.returncode == 3
    assert "no saved conversation" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert file.read_bytes() == damaged


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


def test_the_log_ends_with_the_program(model_file: Path, tmp_path: Path) -> None:
    """A program that runs this one more than once gets one handler at a time."""
    logger = logging.getLogger("sardine_gguf")
    before = (list(logger.handlers), logger.level)
    file = tmp_path / "log.txt"
    assert (
        main(["-m", str(model_file), "-p", "Hi", "-n", "1", "--log-file", str(file), "-lv", "5"])
        == 0
    )
    assert "vocab" in file.read_text()
    assert (logger.handlers, logger.level) == before


@pytest.mark.parametrize("flag", ["-o", "--log-file"])
@pytest.mark.parametrize("link", ["none", "hard", "symbolic"])
def test_outputs_never_go_over_inputs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, link: str
) -> None:
    """Each file that is read, by its name or by a link, is as before; nothing is loaded."""
    inputs = (
        *("-m", "--adapter", "-f", "-sysf", "--session", "--chat-template-file"),
        *("--grammar-file", "--json-schema-file"),
    )
    for number, name in enumerate(inputs):
        file = tmp_path / f"{number}"
        file.write_text("as before")
        output = file
        if link != "none":
            output = tmp_path / f"{number}.link"
            output.hardlink_to(file) if link == "hard" else output.symlink_to(file)
        model = [] if name == "-m" else ["-m", str(tmp_path / "missing.gguf")]
        assert main([*model, name, str(file), flag, str(output)]) == 2
        assert f"is the file of {name}: name another one" in capsys.readouterr().err
        assert file.read_text() == "as before"


def test_outputs_are_two_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    assert main(["-m", "missing.gguf", "-p", "hi", "-o", new, "--log-file", new]) == 2
    assert "--log-file" in capsys.readouterr().err
    assert not Path(new).exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(model_file: Path, tmp_path: Path, closed: str) -> None:
    """And the files that are opened do not get their output."""
    said = tmp_path / "said"
    args = [*CLI, "-m", model_file, "-p", "hi", "-n", 4, "-t", 1, "-o", said]
    command = f"exec {shlex.join(map(str, args))} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert bool(done.stdout.strip()) == (">&-" not in closed.split())
    assert said.read_text().startswith("> hi\n")
    assert "prompt tokens" not in said.read_text()


def test_an_error_with_standard_error_closed_keeps_its_exit_code(tmp_path: Path) -> None:
    args = shlex.join([*CLI, "-m", str(tmp_path / "missing.gguf"), "-p", "hi"])
    done = subprocess.run(["bash", "-c", f"exec {args} 2>&-"], capture_output=True, timeout=120)
    assert done.returncode == 4


@pytest.mark.parametrize(("error", "code"), [(OSError(28, "full"), 4), (FormatError("changed"), 3)])
def test_an_answer_that_is_not_saved_is_an_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
    error: Exception,
    code: int,
) -> None:
    def save(self: SessionFile, conversation: object) -> None:
        raise error

    monkeypatch.setattr(SessionFile, "save", save)
    session = str(tmp_path / "s.json")
    args = ["-m", str(model_file), "-p", "hi", "-n", "4", "-t", "1", "--session", session]
    assert main(args) == code
    out, err = capsys.readouterr()
    assert out.strip()
    assert str(error.args[-1]) in err.splitlines()[-1]


@pytest.mark.parametrize("full", ["standard output", "/dev/full"])
def test_a_full_disk_is_not_blamed_on_the_model(model_file: Path, full: str) -> None:
    """The one that was written to is named, in one line; also where the end of the run finds out."""
    args = ["-m", model_file, "-p", "hi", "-n", 4, "-t", 1, "--no-show-timings"]
    to = ">/dev/full" if full == "standard output" else "-o /dev/full"
    command = f"exec {shlex.join(map(str, [*CLI, *args]))} {to}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert done.stderr == f"sardine-cli: error: {full}: No space left on device\n"


def test_a_full_disk_at_the_end() -> None:
    command = f"exec {shlex.join(CLI)} --completion-bash >/dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert done.stderr == "sardine-cli: error: standard output: No space left on device\n"
