"""The process that renders chat templates: its limits, and that it serves again after each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sardine_gguf.template_process import TemplateProcess, TemplateRefusal, TemplateSyntax

MESSAGES = {"messages": [{"role": "user", "content": "é😀\ud800 <b>"}]}
HELLO = "{{ messages[0].content }}"


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    p = TemplateProcess()
    yield p
    p.close()


def test_renders(process: TemplateProcess) -> None:
    """Any text passes as it is, also lone surrogates; nothing is escaped."""
    assert process.render(HELLO, MESSAGES) == MESSAGES["messages"][0]["content"]
    assert process.render("{{ messages | tojson }}", {"messages": [{"a": "é<"}]}) == '[{"a": "é<"}]'
    assert process.render("  {% if 1 %}\n  a\n  {% endif %}\n", {}) == "  a\n"
    process.check(HELLO)


HOSTILE = {
    "nested_loops": (
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "more than 2 s",
    ),
    "macros": ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "repetition": ("{{ 'a' * 10**10 }}", "256 MiB"),
    "width": ("{{ '%1000000000d' % 1 }}", "256 MiB"),
    "doubling": (
        "{% set n = namespace(x='a') %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "256 MiB",
    ),
    "output": ("{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}", "1048576 characters"),
    "escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "refusal": ("{{ raise_exception('not ' + messages[0].role) }}", "^not user$"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_limits(process: TemplateProcess, name: str) -> None:
    """Each ends in a refusal that says why, and the next template is rendered."""
    source, message = HOSTILE[name]
    with pytest.raises(TemplateRefusal, match=message):
        process.render(source, MESSAGES)
    assert process.render("{{ 1 + 1 }}", {}) == "2"


def test_long_messages_are_cut(process: TemplateProcess) -> None:
    """An error of any length that the template writes, or that holds a value of it."""
    for source in ("{{ raise_exception('x' * 10000000) }}", "{{ ('x' * 10000000)() }}"):
        with pytest.raises(TemplateRefusal) as caught:
            process.render(source, {})
        assert len(str(caught.value)) < 2100
    with pytest.raises(TemplateSyntax) as wrong:
        process.check("{{ 1 " + "x" * 1_000_000 + " }}")
    assert len(str(wrong.value)) < 2100


@pytest.mark.parametrize(
    "source",
    [
        "{{",
        "{% for x in %}",
        "{{" + "[" * 100_000 + "]" * 100_000 + "}}",
        "{{" + "not " * 100_000 + "1}}",
    ],
    ids=["open", "for", "brackets", "nots"],
)
def test_syntax(process: TemplateProcess, source: str) -> None:
    """Also what would exhaust the stack of this process."""
    with pytest.raises(TemplateSyntax):
        process.check(source)
    assert process.render("{{ 1 + 1 }}", {}) == "2"


def test_long_conversations_have_room(process: TemplateProcess) -> None:
    """The output's limit grows with the messages."""
    content = "word " * 500_000
    assert process.render(HELLO, {"messages": [{"content": content}]}) == content


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), float])
def test_values_that_are_no_json(process: TemplateProcess, value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        process.render(HELLO, {"messages": [{"content": value}]})


def test_an_exception_while_waiting(process: TemplateProcess) -> None:
    """Ctrl-C reaches the caller, and the interrupted answer is nobody else's."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        process.render("{{ 1 }}", {})
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            process.render(HOSTILE["nested_loops"][0], {})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert process.render("{{ 2 }}", {}) == "2"


def test_threads(process: TemplateProcess) -> None:
    """Each gets its own answer."""
    wrong: list[str] = []

    def work(n: int) -> None:
        for i in range(20):
            text = f"{n}-{i}"
            if process.render("{{ text }}", {"text": text}) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_fork(process: TemplateProcess) -> None:
    """A forked child starts a process of its own and leaves the parent's alone."""
    assert process.render("{{ 1 }}", {}) == "1"
    pid = os.fork()
    if pid == 0:
        process.forget()  # as the package's own instance does by itself
        good = process.render("{{ 2 }}", {}) == "2"
        process.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert process.render("{{ 3 }}", {}) == "3"


def test_nothing_leaks() -> None:
    """Neither descriptors nor processes are left by closed or killed workers."""

    def held() -> tuple[int, list[str]]:
        children = [p.read_text() for p in Path("/proc/self/task").glob("*/children")]
        return len(list(Path("/proc/self/fd").iterdir())), sorted(" ".join(children).split())

    before = held()
    for _ in range(3):
        process = TemplateProcess()
        with pytest.raises(TemplateRefusal):
            process.render(HOSTILE["repetition"][0], {})
        process.render("{{ 1 }}", {})
        process.close()
    assert held() == before


def test_the_process_sees_no_environment_and_writes_no_file(process: TemplateProcess) -> None:
    """A template that escaped would find nothing. RLIMIT_FSIZE holds for all that it could open."""
    process.render("{{ 1 }}", {})
    assert process._process is not None
    folder = Path(f"/proc/{process._process.pid}")
    names = {v.split(b"=")[0] for v in (folder / "environ").read_bytes().split(b"\0") if v}
    assert names <= {b"TZ", b"LANG", b"LC_ALL", b"LD_LIBRARY_PATH"}
    limits = (folder / "limits").read_text()
    assert any(
        line.split()[:5] == ["Max", "file", "size", "0", "0"] for line in limits.splitlines()
    )
