"""A model's file that changes while it is in use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import TinyModel
from sardine_gguf import ModelChanged, Sardine, _native

TOKENS = [1, 9, 12, 30]


@pytest.fixture
def copied(tiny: TinyModel, tmp_path: Path) -> Iterator[tuple[Path, Sardine]]:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny.gguf, path)
    with Sardine(path, n_threads=1) as m:
        m.eval(TOKENS)
        yield path, m


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, 4096)
        return
    with path.open("r+b") as f:
        if how == "appended":
            f.seek(0, os.SEEK_END)
        else:
            f.seek(path.stat().st_size // 2)
        f.write(b"changed")


@pytest.mark.parametrize("how", ["truncated", "appended", "written"])
def test_changed_in_place(copied: tuple[Path, Sardine], how: str) -> None:
    """An error that names the file, both sizes and the remedy, from every call that reads the mapping."""
    path, m = copied
    size = path.stat().st_size
    state = m.save_state()
    assert state is not None
    damage(path, how)
    now = path.stat().st_size
    for call in (
        lambda: m.eval(TOKENS),
        lambda: m.generate("ab", max_tokens=2),
        lambda: m.save_state(),
        lambda: m.load_state(state),
        lambda: m.model.file.get("general.architecture"),
        lambda: m.model.file.kv,
    ):
        with pytest.raises(ModelChanged) as caught:
            call()
        assert caught.value.file == str(path)
        for part in (str(path), f"had {size} bytes", f"now {now} bytes", "UTC", "Load it again"):
            assert part in str(caught.value)


def test_replaced_or_removed(copied: tuple[Path, Sardine], tiny: TinyModel) -> None:
    """Another file under the name, or none, changes nothing: the mapping keeps the old one."""
    path, m = copied
    m.reset()
    expected = m.eval(TOKENS)
    other = path.with_name("other.gguf")
    other.write_bytes(b"no model")
    other.replace(path)
    m.reset()
    assert (m.eval(TOKENS) == expected).all()
    path.unlink()
    m.reset()
    assert (m.eval(TOKENS) == expected).all()


def test_an_adapter_too(tiny: TinyModel, tmp_path: Path) -> None:
    from sardine_gguf.convert import convert, write_base

    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    write_base(tiny.base, base, "f32")
    convert(tiny.base, tiny.srde, adapter, adapter=True, n_threads=2)
    with Sardine(base, adapter=adapter, n_threads=1) as m:
        m.eval(TOKENS)
        os.truncate(adapter, 100)
        with pytest.raises(ModelChanged, match=r"adapter\.gguf"):
            m.eval(TOKENS)


def test_while_it_is_loaded(tiny: TinyModel, tmp_path: Path) -> None:
    """A file that grows between two of the checks; what the error names is what it was when it was opened."""
    path = tmp_path / "model.gguf"
    shutil.copy(tiny.gguf, path)
    seen: list[float] = []

    def grow(done: float) -> None:
        seen.append(done)
        with path.open("ab") as f:
            f.write(b"x")

    with pytest.raises(ModelChanged):
        Sardine(path, progress=grow)
    assert len(seen) < 4
    with pytest.raises(ModelChanged, match="in use"):
        _native.Model(os.fsencode(tiny_with_touch(tiny, path)), progress=lambda _: os.utime(path))


def tiny_with_touch(tiny: TinyModel, path: Path) -> Path:
    """A fresh copy with an old date."""
    shutil.copy(tiny.gguf, path)
    os.utime(path, (1, 1))
    return path


def test_between_the_batches(tiny: TinyModel, tmp_path: Path) -> None:
    """In a process of its own: where the check came too late, it would die by SIGBUS."""
    path = tmp_path / "model.gguf"
    shutil.copy(tiny.gguf, path)
    code = """
import os, sys
from sardine_gguf import ModelChanged, Sardine
m = Sardine(sys.argv[1], n_threads=1, n_ctx=256)
for i, piece in enumerate(m.generate_tokens([1, 9, 12], max_tokens=100, temperature=0, logit_bias={2: -100})):
    if i == 3:
        try:
            os.truncate(sys.argv[1], 0)
        except OSError:
            sys.exit(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "ModelChanged" in done.stderr.splitlines()[-1]
