"""The end of the process, whatever other threads are doing then."""

from __future__ import annotations

import subprocess
import sys

import pytest
from models import TinyModel

_BEGIN = """
import signal, sys, threading
from sardine_gguf import Sardine

path = sys.argv[1]
tokens = [1] + [9] * 4000
m = Sardine(path, n_ctx=8192, n_batch=64, n_threads=1)
begun = threading.Event()
def forever(work):
    while True:
        work()
        begun.set()
def end_while(work):
    threading.Thread(target=forever, args=(work,), daemon=True).start()
    assert begun.wait(60)
    print("the end", flush=True)
    sys.exit(3)
"""

CASES = {
    "evaluations": "end_while(lambda: (m.reset(), m.session.decode(tokens)))",
    "tokens": "end_while(lambda: m.generate([1, 9], max_tokens=4, grammar='root ::= [a-z ]*'))",
    "streams": "end_while(lambda: list(m.stream_generate([1, 9], max_tokens=4)))",
    "states": "m.session.decode(tokens); end_while(lambda: m.load_state(m.save_state()))",
    "loading": "end_while(lambda: Sardine(path, progress=lambda done: None).close())",
    "tokenizing": "end_while(lambda: m.tokenize('the rain ' * 20000))",
}


def run(code: str, tiny: TinyModel) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BEGIN + code, str(tiny.gguf)],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("case", CASES)
def test_a_daemon_thread_at_work(tiny: TinyModel, case: str) -> None:
    """It ends with the process, which neither crashes nor waits for it."""
    done = run(CASES[case], tiny)
    assert (done.stdout, done.stderr, done.returncode) == ("the end\n", "", 3)


def test_interrupted_tokenization(tiny: TinyModel) -> None:
    """What goes on in the background, here for minutes, is not waited for."""
    done = run(
        """
text = "hello world, and so on " * 4_000_000
signal.setitimer(signal.ITIMER_REAL, 1)
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
try:
    m.tokenize(text)
except KeyboardInterrupt:
    print("interrupted", end="")
sys.exit(3)
""",
        tiny,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted", "", 3)
