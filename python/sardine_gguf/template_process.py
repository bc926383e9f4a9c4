"""Renders chat templates in a process that can be stopped whatever the template does.

A template is a program from a file that may be hostile, and Python cannot stop one inside a thread: Jinja's
sandbox caps range(), but nested loops, macros that call themselves, 'a' * 10**10 or an enormous format width
all run in code that no hook sees. A process has limits for all of that (template_worker.py): 2 s of processor
time, 256 MiB. It starts in some 0.1 s, is kept for the next rendering, and ends with this one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sardine_gguf.template_worker import CPU_SECONDS, MEMORY_BYTES

OUTPUT_CHARACTERS = 1 << 20  # beyond the characters of the variables themselves
_WORKER = Path(__file__).with_name("template_worker.py")


class TemplateSyntax(ValueError):
    """The template does not parse."""


class TemplateRefusal(ValueError):
    """The template raised an error, or ran into a limit."""


def _command() -> list[str]:
    """Isolated Python with jinja2's folders alone; the site module would cost as much time as jinja2."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(f"sardine_gguf needs {name}: pip install jinja2")
        folders.append(str(Path(spec.origin).parent.parent))
    return [sys.executable, "-I", "-S", str(_WORKER), *dict.fromkeys(folders)]


def _write_all(stream: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _read_exactly(stream: IO[bytes], n: int) -> bytes:
    """n bytes; raises EOFError if the process has ended."""
    parts = []
    while n > 0:
        part = stream.read(min(n, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


class TemplateProcess:
    """One worker process, started when it is needed and again after it was stopped. Threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, source: str) -> None:
        """Parses a template. Raises TemplateSyntax."""
        self._ask({"source": source})

    def render(
        self, source: str, variables: Mapping[str, Any], marks: Mapping[str, str] | None = None
    ) -> str:
        """The template's output with these variables, which must be JSON.

        Of `marks`, characters by words, each stands in the place of its word wherever the template's source
        writes it, but for where it searches for it.

        Raises:
            TemplateSyntax: the template does not parse.
            TemplateRefusal: it raised an error, or took more time, memory or output than it may.
            ValueError: the variables are no JSON.
        """
        try:
            size = len(json.dumps(variables, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"the messages are not JSON values: {e}") from e
        limit = OUTPUT_CHARACTERS + size
        request = {"source": source, "variables": variables, "limit": limit}
        return self._ask({**request, "marks": dict(marks)} if marks else request)

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """For a forked child: the process is the parent's, and so is who holds the lock."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
            for stream in (self._process.stdin, self._process.stdout):
                stream.close()  # type: ignore[union-attr]
            self._process = None

    def _ask(self, request: dict[str, Any]) -> str:
        data = json.dumps(request).encode()
        with self._lock:
            try:
                reply = self._exchange(data)
            except BaseException:
                # Ctrl-C included: an answer may still come, so this process serves nobody else.
                self._stop()
                raise
        kind, message = reply.get("error"), reply.get("message", "")
        if kind == "syntax":
            raise TemplateSyntax(message)
        if kind == "length":
            raise TemplateRefusal(f"its output has more than {OUTPUT_CHARACTERS} characters")
        if kind == "memory":
            raise TemplateRefusal(f"it needs more than {MEMORY_BYTES >> 20} MiB")
        if kind is not None:
            raise TemplateRefusal(message)
        return str(reply["text"])

    def _exchange(self, data: bytes) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then the missing reply tells
            _write_all(process.stdin, struct.pack("<I", len(data)) + data)
        with contextlib.suppress(EOFError):
            (size,) = struct.unpack("<I", _read_exactly(process.stdout, 4))
            reply: dict[str, Any] = json.loads(_read_exactly(process.stdout, size))
            if reply.get("error") == "memory":
                self._stop()
            return reply
        code = process.wait()
        self._stop()
        if code in (-27, -9):  # SIGPROF; SIGKILL where the system enforces it
            raise TemplateRefusal(f"it runs for more than {CPU_SECONDS:.0f} s")
        raise TemplateRefusal(f"the process that renders it ended with code {code}")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # No secrets of the environment, and no preloaded libraries, for a process with limits.
            kept = ("TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
            self._process = subprocess.Popen(
                _command(),
                bufsize=0,  # a forked child then has nothing to flush into our pipe
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={k: os.environ[k] for k in kept if k in os.environ},
                start_new_session=True,  # a terminal's Ctrl-C is not for it
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            stream.close()  # type: ignore[union-attr]
        process.wait()


TEMPLATES = TemplateProcess()
atexit.register(TEMPLATES.close)
os.register_at_fork(after_in_child=TEMPLATES.forget)
