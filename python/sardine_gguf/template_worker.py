"""The process that renders chat templates: limited time, memory and output, no environment, no files.

A program of its own, started by template_process.py with the folders of jinja2 as arguments. Requests come
on standard input, replies go to standard output: 4 bytes of length (little endian), then JSON.
"""

from __future__ import annotations

import json
import os
import re
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


# Methods of strings whose arguments, or for replace the first, are searched for and not written.
_SEARCHES = {
    "split", "rsplit", "startswith", "endswith", "strip", "lstrip", "rstrip", "find", "rfind", "index",
    "rindex", "count", "partition", "rpartition", "removeprefix", "removesuffix", "replace",
}  # fmt: skip


def marked(env: Any, source: str, marks: dict[str, str]) -> Any:
    """The template's syntax tree, with marks in the place of words in its text and constants.

    What is compared, searched for or looked up stays as it is. Without marks it is the source itself.
    """
    if not marks:
        return source
    from jinja2 import nodes

    words = re.compile("|".join(re.escape(w) for w in sorted(marks, key=len, reverse=True)))

    def searched(node: Any) -> list[Any]:
        if isinstance(node, nodes.Compare):
            return [node.expr, *(operand.expr for operand in node.ops)]
        if isinstance(node, nodes.Getitem):
            return [node.arg]
        if isinstance(node, nodes.Pair):
            return [node.key]
        if isinstance(node, nodes.Test):
            return list(node.args)
        if isinstance(node, nodes.Filter):
            return node.args[:1] if node.name == "replace" else []
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            name = node.node.attr
            return node.args[: 1 if name == "replace" else None] if name in _SEARCHES else []
        return []

    tree = env.parse(source)
    # Variables that are only searched for are constants to search for by another name.
    sought = [n for node in tree.find_all(nodes.Node) for n in searched(node)]
    uses = [n.name for n in sought if isinstance(n, nodes.Name)]
    loads = [n.name for n in tree.find_all(nodes.Name) if n.ctx == "load"]
    only_sought = {name for name in uses if loads.count(name) == uses.count(name)}
    sought += [
        n.node
        for n in tree.find_all(nodes.Assign)
        if isinstance(n.target, nodes.Name) and n.target.name in only_sought
    ]
    kept = {id(n) for n in sought if isinstance(n, nodes.Const)}
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, nodes.TemplateData):
            node.data = words.sub(lambda m: marks[m.group()], node.data)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            node.value = words.sub(lambda m: marks[m.group()], node.value)
        todo += [child for child in node.iter_child_nodes() if id(child) not in kept]
    return tree


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


def answer(request: dict[str, Any], cache: dict[Any, Any], env: Any) -> dict[str, Any]:
    """The reply to a request: {"text": ...}, or {"error": kind, "message": ...}.

    A request has a "source", and, if it is to be rendered, "variables", "limit" in characters, and perhaps
    "marks".
    """
    marks = request.get("marks", {})
    source = (request["source"], *marks.items())
    if source not in cache:
        if len(cache) > 3:
            cache.clear()  # a process has one template as a rule
        try:
            cache[source] = env.from_string(marked(env, request["source"], marks))
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
    cache: dict[Any, Any] = {}
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
