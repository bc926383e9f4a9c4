"""A script written for llama-cpp-python gives the same with the class's name changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sardine_gguf import Sardine
from sardine_gguf.convert import write_base

HERE = Path(__file__).parent
SCRIPT = HERE / "llama_script.py"
EXAMPLE = HERE.parents[1] / "examples" / "tiny-sardine"
SECTIONS = (
    "completion", "completion_stream", "completion_seeded", "completion_logprobs", "chat", "chat_stream",
    "chat_logprobs", "json_mode", "json_schema", "tokens", "token_loop",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's plain base, which llama.cpp runs too."""
    path = tmp_path_factory.mktemp("script") / "base.gguf"
    write_base(EXAMPLE / "base", path, "q8_0", n_threads=1)
    return path


def run(script: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script after the two words are replaced."""
    path = tmp_path_factory.mktemp("renamed") / "script.py"
    text = SCRIPT.read_text()
    changed = text.replace("from llama_cpp import Llama", "from sardine_gguf import Sardine")
    path.write_text(changed.replace("Llama(", "Sardine("))
    return path


@pytest.fixture(scope="module")
def results(base: Path, renamed: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(llama_cpp's, ours)"""
    sections = [*SECTIONS, *(["state"] if hasattr(Sardine, "save_state") else [])]
    return run(SCRIPT, str(base), *sections), run(renamed, str(base), *sections)


# What differs on purpose; docs/python.md says so.
def comparable(value: Any) -> Any:
    """Without ids, times and names; logprobs rounded; chunks joined."""
    if isinstance(value, dict):
        skipped = ("id", "created", "model", "prompt_tokens_details")
        return {k: comparable(v) for k, v in value.items() if k not in skipped}
    if isinstance(value, list):
        return [comparable(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def shape(value: Any) -> Any:
    """Keys and types; of lists, the first entry."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize("section", ["completion", "completion_seeded", "chat", "json_mode"])
def test_same_objects(results: tuple[dict[str, Any], dict[str, Any]], section: str) -> None:
    """Keys, texts, finish reasons and token counts are equal."""
    theirs, ours = (comparable(r[section]) for r in results)
    assert ours == theirs


def test_same_object_by_a_schema(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """But for white space behind the value, which their grammar lets come."""
    theirs, ours = (comparable(r["json_schema"]) for r in results)
    text = ours["choices"][0]["message"]["content"]
    assert text == theirs["choices"][0]["message"].pop("content").rstrip()
    assert json.loads(ours["choices"][0]["message"].pop("content")).keys() == {"team_name"}
    assert ours["choices"] == theirs["choices"]
    assert shape(ours) == shape(theirs)


def test_same_tokens(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert results[1]["tokens"] == results[0]["tokens"]
    assert results[1]["token_loop"] == results[0]["token_loop"]


@pytest.mark.parametrize("section", ["completion_stream", "chat_stream"])
def test_same_streams(results: tuple[dict[str, Any], dict[str, Any]], section: str) -> None:
    """The same text and end; every key of theirs is in ours, with the same type."""
    texts = []
    for chunks in (r[section] for r in results):
        parts = [c["choices"][0] for c in chunks]
        texts.append(
            "".join(p.get("text") or p.get("delta", {}).get("content") or "" for p in parts)
        )
        assert [p["finish_reason"] for p in parts][:-1] == [None] * (len(parts) - 1)
        assert len({c["id"] for c in chunks}) == 1
    assert texts[0] == texts[1]
    theirs, ours = (r[section] for r in results)
    assert ours[-1]["choices"][0]["finish_reason"] == theirs[-1]["choices"][0]["finish_reason"]
    for i in (0, 1, -1):
        mine, other = ours[i], theirs[i]
        assert set(other) <= set(mine) <= set(other) | {"usage"}
        assert set(other["choices"][0]) == set(mine["choices"][0])
        assert set(other["choices"][0].get("delta", {})) <= set(mine["choices"][0].get("delta", {}))
    assert "usage" in ours[-1]


def test_same_completion_logprobs(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Tokens, offsets and logprobs; of the prompt too with echo. Equal top tokens may be in another order."""
    for theirs, ours in zip(*(r["completion_logprobs"] for r in results), strict=True):
        assert shape(ours["choices"][0]["logprobs"]) == shape(theirs["choices"][0]["logprobs"])
        a, b = theirs["choices"][0]["logprobs"], ours["choices"][0]["logprobs"]
        assert ours["choices"][0]["text"] == theirs["choices"][0]["text"]
        assert b["tokens"] == a["tokens"]
        assert b["text_offset"] == a["text_offset"]
        assert b["token_logprobs"] == pytest.approx(a["token_logprobs"], abs=1e-3)
        for x, y in zip(a["top_logprobs"], b["top_logprobs"], strict=True):
            assert (x is None) == (y is None)
            if x and y:
                assert sorted(y.values()) == pytest.approx(sorted(x.values()), abs=1e-3)


def test_same_chat_logprobs(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """As theirs, with the bytes of each token besides."""
    theirs, ours = (r["chat_logprobs"]["choices"][0]["logprobs"]["content"] for r in results)
    assert [t["token"] for t in ours] == [t["token"] for t in theirs]
    assert [t["logprob"] for t in ours] == pytest.approx([t["logprob"] for t in theirs], abs=1e-3)
    for a, b in zip(theirs, ours, strict=True):
        assert set(a) == set(b)
        top = dict.fromkeys(t["token"] for t in b["top_logprobs"])
        assert set(top) <= {t["token"] for t in a["top_logprobs"]}
        assert bytes(b["bytes"]).decode("utf-8", "replace") == b["token"]


@pytest.mark.skipif(not hasattr(Sardine, "save_state"), reason="this build cannot save states")
def test_same_state(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Restored, the context holds the tokens, and what follows is as before."""
    for n_tokens, first, second in (r["state"] for r in results):
        assert n_tokens == len(results[0]["tokens"][0])
        assert first["choices"] == second["choices"]
    assert comparable(results[0]["state"][1]["choices"]) == comparable(
        results[1]["state"][1]["choices"]
    )
