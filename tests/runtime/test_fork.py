"""Forked processes: an error where their threads would be waited for forever, and work where they can."""

from __future__ import annotations

import subprocess
import sys

import pytest
from models import TinyModel

_BEGIN = """
import multiprocessing, os, sys
from sardine_gguf import BusyError, ForkError, Sardine

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work()
        except ForkError as e:
            assert "spawn" in str(e) and "forkserver" in str(e), e
            code = 42
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

path, tokens = sys.argv[1], [1, 9, 12, 30, 11]
def first(m):
    m.reset()
    return m.eval(tokens).tobytes()
"""

CASES = {
    # The parent's context, or a new one, after OpenMP's threads were made.
    "parents": """
m = Sardine(path, n_threads=2)
first(m)
assert child(lambda: first(m) and 0) == 42
assert child(lambda: m.session.tokens and 0) == 42
assert child(lambda: m.n_tokens != 5) == 0
assert first(m)
""",
    "never_used": """
m = Sardine(path, n_threads=2)
assert child(lambda: first(m) and 0) == 42
""",
    "new_context": """
m = Sardine(path, n_threads=2)
first(m)
assert child(lambda: first(m.new_context()) and 0) == 42
assert child(lambda: first(Sardine(path, n_threads=2)) and 0) == 42
""",
    # One thread needs none that fork leaves behind.
    "one_thread": """
m = Sardine(path, n_threads=1)
expected = first(m)
assert child(lambda: first(m) != expected) == 0
assert child(lambda: first(m.new_context()) != expected) == 0
assert child(lambda: first(Sardine(path, n_threads=1)) != expected) == 0
""",
    "one_thread_after_two": """
m = Sardine(path, n_threads=2)
first(m)
one = m.new_context(n_threads=1)
expected = first(one)
assert child(lambda: first(one) != expected) == 0
""",
    "loaded_in_the_child": """
expected = first(Sardine(path, n_threads=2)) if len(sys.argv) > 2 else None
assert child(lambda: not first(Sardine(path, n_threads=2))) == 0
""",
    "multiprocessing": """
m = Sardine(path, n_threads=2)
first(m)
def work(queue):
    try:
        m.eval(tokens)
    except ForkError as e:
        queue.put(str(e))
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=work, args=(queue,))
process.start()
assert "n_threads=2" in queue.get(timeout=60)
process.join(60)
assert process.exitcode == 0
""",
    "held_by_a_thread": """
import threading
m = Sardine(path, n_threads=1, n_ctx=8192)
t = threading.Thread(target=lambda: m.eval([1] + [9] * 8000))
t.start()
while t.is_alive():
    try:
        m.session.tokens
    except BusyError:
        break
code = child(lambda: m.session.tokens and 0)
m.cancel()
t.join()
assert code == 42, code
""",
}


@pytest.mark.parametrize("case", CASES)
def test_forked_child(tiny: TinyModel, case: str) -> None:
    """Nothing hangs: a process that does is killed, and fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BEGIN + CASES[case], str(tiny.gguf)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [x for x in done.stderr.splitlines() if "Cancelled" not in x]
    assert done.returncode == 0, "\n".join(lines[-20:])
