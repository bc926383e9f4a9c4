"""Loads files and mutants of files in a process of its own, where a crash is a result and not the end.

As a program it reads one JSON request a line: {"path": ..., "cut": n, "flips": [[offset, byte], ...]}, of
which only path is needed, and answers each with ["ok" or the exception's class, the field or the message].
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXT = "the rain <s>é\n 12\t日本"


def verdict(path: str) -> tuple[str, str]:
    """Loads a file and, if that works, runs a few tokens and the tokenizer."""
    import sardine_gguf

    try:
        with sardine_gguf.Sardine(path, n_ctx=64, n_threads=1) as m:
            m.eval([i % m.n_vocab for i in range(6)])
            m.eval([0])
            if m.model.has_tokenizer:
                m.detokenize(m.tokenize(TEXT, special=True))
                m.detokenize(range(min(m.n_vocab, 512)), special=True)
    except sardine_gguf.FormatError as e:
        return "FormatError", e.field if e.file == path else f"file is {e.file!r}"
    except Exception as e:
        return type(e).__name__, str(e)
    return "ok", ""


def mutated(request: dict[str, Any]) -> str:
    """The path to load: the request's own, or that of a changed copy beside it."""
    path = Path(request["path"])
    if "cut" not in request and "flips" not in request:
        return str(path)
    data = bytearray(path.read_bytes()[: request.get("cut")])
    for offset, value in request.get("flips", ()):
        data[offset] = value
    copy = path.with_suffix(".mutant")
    copy.unlink(missing_ok=True)
    copy.write_bytes(data)
    return str(copy)


class Worker:
    """The process; starts again after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker

    def ask(self, **request: Any) -> tuple[str, str]:
        """The answer, or ("crash", exit code and the end of standard error)."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        p = self._process
        assert p.stdin
        assert p.stdout
        try:
            p.stdin.write(json.dumps(request) + "\n")
            p.stdin.flush()
            line = p.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            kind, text = json.loads(line)
            return kind, text
        self._process = None
        p.communicate()
        self._errors.seek(0)
        errors = self._errors.read()[-2000:].decode(errors="replace")
        return "crash", f"exit code {p.returncode}: {errors}"

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.communicate()
            self._process = None


def main(arguments: Sequence[str]) -> None:
    """Answers every line."""
    for line in sys.stdin:
        print(json.dumps(verdict(mutated(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
