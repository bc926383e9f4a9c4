"""A user's script under mypy --strict: what is right passes, what is wrong is found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

# A line that ends in "# error" must be found, and no other.
SCRIPT = """
from typing import Any
from collections.abc import Iterator
from sardine_gguf import Sardine

MESSAGES = [{"role": "user", "content": "Hi"}]

def use(llm: Sardine, stream: bool) -> None:
    whole: dict[str, Any] = llm("Hi", max_tokens=3, stop=["."])
    whole = llm.create_chat_completion(MESSAGES, temperature=0.5, response_format={"type": "json_object"})
    chunks: Iterator[dict[str, Any]] = llm.create_completion("Hi", stream=True, logprobs=1)
    chunks = llm.create_chat_completion(MESSAGES, stream=True)
    either: dict[str, Any] | Iterator[dict[str, Any]] = llm.create_completion("Hi", stream=stream)
    either = llm.create_chat_completion(MESSAGES, stream=stream)
    text: str = llm.generate("Hi")
    tokens: list[int] = llm.tokenize(b"Hi") + list(llm.generate(llm.tokenize("Hi"), top_k=3))
    n: int = llm.n_ctx + llm.n_ctx() + llm.eval(tokens).shape[0]
    state: bytes = llm.save_state()
    total = sum(t.logprob or 0 for t in llm.score(text))
    llm("Hi", temprature=1)  # error
    llm("Hi", temperature="hot")  # error
    llm.tokenize(3)  # error
    llm.scores  # error
"""


def test_a_users_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--config-file", "", "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    found = {int(n) for n in re.findall(r"^script\.py:(\d+): error", done.stdout, re.MULTILINE)}
    expected = {i for i, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# error")}
    assert found == expected, done.stdout + done.stderr
