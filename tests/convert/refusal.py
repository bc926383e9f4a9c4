"""What every input that is refused is held to: quick, in bounded memory, and nothing left behind."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

from sardine_gguf.convert.cli import main

# Python objects and arrays at most, beside twice the inputs. tracemalloc counts them exactly, where
# a resident size would count what earlier tests left behind.
MEMORY = 64 << 20
SECONDS = 2  # of CPU time: a busy machine does not count


def refuse(base, srde, tmp_path, capsys, *, code=3, args=()):
    """Converts, which must fail; returns the line that says why."""
    out = tmp_path / "out" / "o.gguf"
    out.parent.mkdir(exist_ok=True)
    canary = tmp_path / "canary"
    capsys.readouterr()
    arguments = ["--base", str(base), "--srde", str(srde), "-o", str(out), *args]
    tracemalloc.start()
    try:
        start = time.process_time()
        assert main(arguments) == code
        seconds = time.process_time() - start
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Tracing takes as long again and more.
    assert seconds < 4 * SECONDS
    assert peak < MEMORY + 2 * sum(map(_size, {Path(base), Path(srde)}))
    text = capsys.readouterr()
    lines = [t for t in text.err.splitlines() if not t.startswith("warning: ")]
    assert len(lines) == 1, text.err
    assert lines[0].startswith("convert-sardine: error: ")
    assert text.out == ""
    assert list(out.parent.iterdir()) == []
    assert not canary.exists()
    return lines[0]


def _size(path):
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(f.stat().st_size for f in path.iterdir() if f.is_file())
