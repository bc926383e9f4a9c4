"""The process that renders chat templates: limited time, memory and output, no environment, no files.

A program of its own, started by template_process.py with the folders of jinja2 as arguments. Requests come
on standard input, replies go to standard output: 4 bytes of length (little endian), then JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

CPU_SECONDS = 2.0
MEMORY_BYTES = 256 << 20
MESSAGE_CHARACTERS = 2000  # of an error


def limit_process() -> None:
    """What a template that leaves the sandbox still meets."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class TooLong(Exception):
    """The output passed its limit."""


def make_environment() -> Any:
    """Jinja as chat templates expect it: whitespace as in transformers, a few globals, a plain tojson."""
    from datetime import datetime

    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # Jinja's own escapes all but ASCII, and HTML, neither of which a prompt wants.
    env.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return env


def render(template: Any, variables: dict[str, Any], limit: int) -> str:
    """The template's output. Raises TooLong as soon as it has more than `limit` characters."""
    parts, size = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise TooLong
    return "".join(parts)


def message_of(text: str) -> str:
    """An error's text, which a template may make as long as it likes, cut to MESSAGE_CHARACTERS."""
    if len(text) <= MESSAGE_CHARACTERS:
        return text
    return f"{text[:MESSAGE_CHARACTERS]}… ({len(text)} characters)"


def answer(request: dict[str, Any], cache: dict[str, Any], env: Any) -> dict[str, Any]:
    """The reply to a request: {"text": ...}, or {"error": kind, "message": ...}.

    A request has a "source", and, if it is to be rendered, "variables" and "limit" in characters.
    """
    source = request["source"]
    if source not in cache:
        cache.clear()  # a process has one template as a rule
        try:
            cache[source] = env.from_string(source)
        except MemoryError:
            raise
        except (
            Exception
        ) as e:  # also SyntaxError, RecursionError and what else Python's compiler raises
            return {"error": "syntax", "message": message_of(f"{type(e).__name__}: {e}")}
    if "variables" not in request:
        return {"text": ""}
    try:
        return {"text": render(cache[source], request["variables"], request["limit"])}
    except TooLong:
        return {"error": "length", "message": ""}
    except MemoryError:
        raise
    except Exception as e:  # a template is a program: it can fail in any way
        return {"error": "render", "message": message_of(str(e) or type(e).__name__)}


def read_exactly(stream: BinaryIO, n: int) -> bytes:
    """n bytes; raises EOFError if the other side has gone."""
    data = stream.read(n)
    if len(data) < n:
        raise EOFError
    return data


def main() -> None:
    """Answers requests until standard input ends."""
    sys.path[:0] = sys.argv[1:]
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # nothing but replies may reach the pipe
    env = make_environment()
    limit_process()
    cache: dict[str, Any] = {}
    while True:
        try:
            (size,) = struct.unpack("<I", read_exactly(requests, 4))
            # Processor time, so that a busy machine fails nothing; SIGPROF ends the process.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            reply = answer(json.loads(read_exactly(requests, size)), cache, env)
        except EOFError:
            return
        except MemoryError:
            reply = {"error": "memory", "message": ""}
        signal.setitimer(signal.ITIMER_PROF, 0)
        data = json.dumps(reply).encode()
        replies.write(struct.pack("<I", len(data)) + data)
        replies.flush()
        if reply.get("error") == "memory":
            return  # what is left of the heap is not to be trusted with the next template


if __name__ == "__main__":
    main()
