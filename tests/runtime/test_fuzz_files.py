"""Every truncation and changes of every header byte: FormatError or a valid load, never a crash.

By default each header byte gets one of five changes; SARDINE_FULL_TESTS=1 tries all five. Loads run in a
worker process. Tensor data is sampled; the files that load evaluate a few tokens. An accepted file must also
pass the independent check of the sardine part: no silent acceptance.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from gguf_mutate import KINDS, Gguf, Reader
from load_worker import Worker
from models import TinyModel
from validator import Broken, check_sardine


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for the module."""
    w = Worker()
    yield w
    w.close()


def text_bytes(data: bytes) -> set[int]:
    """Offsets inside of the vocabulary's and merges' strings, of which there are thousands."""
    r = Reader(data)
    r.take(4 + 4)
    _, n_entries = r.number("Q"), r.number("Q")
    inside: set[int] = set()
    for _ in range(n_entries):
        key, kind = r.text(), r.number("I")
        start = r.at
        r.value(KINDS[kind])
        if key.startswith(b"tokenizer.") and r.at - start > 400:
            inside |= set(range(start + 12, r.at))
    return inside


def check_verdict(answer: tuple[str, str], what: str) -> bool:
    """True if it loaded; anything but a load and FormatError fails."""
    assert answer[0] in ("ok", "FormatError"), f"{what}: {answer[0]}: {answer[1]}"
    assert answer[0] == "ok" or not answer[1].startswith("file is"), f"{what}: {answer[1]}"
    return answer[0] == "ok"


def accepted_is_valid(data: bytes, what: str) -> None:
    """A file that the runtime took keeps the format's rules."""
    try:
        check_sardine(Gguf.parse(data))
    except Broken as e:
        pytest.fail(f"{what}: accepted, but {e} breaks a rule")


def test_every_truncation(small: TinyModel, worker: Worker) -> None:
    """Cut at every byte of the header and at sampled ones of the data."""
    data = small.gguf.read_bytes()
    header = Gguf.parse(data).header_size
    cuts = [*range(header + 64), *random.Random(1).sample(range(header, len(data)), 300)]
    for n in [*cuts, len(data) - 1]:
        answer = worker.ask(path=str(small.gguf), cut=n)
        whole = n >= len(data.rstrip(b"\0"))  # the last tensor's padding may be absent
        assert check_verdict(answer, f"cut at {n}") <= whole


def test_header_bytes(small: TinyModel, worker: Worker) -> None:
    """Each structural byte as 0, 255, one more, one less or with its top bit flipped."""
    full = os.environ.get("SARDINE_FULL_TESTS") == "1"
    data = small.gguf.read_bytes()
    header = Gguf.parse(data).header_size
    texts = text_bytes(data[:header])
    picked = random.Random(2).sample(sorted(texts), 300)
    results: Counter[bool] = Counter()
    for offset in sorted((set(range(header)) - texts) | set(picked)):
        old = data[offset]
        values = sorted({0, 255, (old + 1) % 256, (old - 1) % 256, old ^ 128} - {old})
        for value in values if full else values[offset % len(values) :][:1]:
            what = f"byte {offset} as {value}"
            loaded = check_verdict(worker.ask(path=str(small.gguf), flips=[[offset, value]]), what)
            results[loaded] += 1
            if loaded:
                accepted_is_valid(data[:offset] + bytes([value]) + data[offset + 1 :], what)
    assert results[False] > results[True] / 2


def sardine_ranges(data: bytes) -> list[tuple[int, int]]:
    """Where the sardine tensors' data lies."""
    at = -(-Gguf.parse(data).header_size // 32) * 32
    out = []
    for t in Gguf.parse(data).tensors:
        if b"delta" in t.name or b"ffn_gate_inp" in t.name:
            out.append((at, at + len(t.data)))
        at += len(t.data)
    return out


@pytest.mark.parametrize("fixture", ["small", "small_shared"])
def test_expert_data(fixture: str, request: pytest.FixtureRequest, worker: Worker) -> None:
    """Random bytes of the experts' tensors: what is accepted keeps the rules, what is refused breaks one."""
    small: TinyModel = request.getfixturevalue(fixture)
    data = small.gguf.read_bytes()
    ranges = sardine_ranges(data)
    rng = random.Random(3)
    verdicts: Counter[tuple[bool, bool]] = Counter()
    for _ in range(600):
        begin, end = rng.choice(ranges)
        flips = [[rng.randrange(begin, end), rng.choice([0, 1, 127, 128, 255])] for _ in range(2)]
        mutant = bytearray(data)
        for offset, value in flips:
            mutant[offset] = value
        loaded = check_verdict(worker.ask(path=str(small.gguf), flips=flips), str(flips))
        try:
            check_sardine(Gguf.parse(bytes(mutant)))
            valid = True
        except Broken:
            valid = False
        verdicts[loaded, valid] += 1
        assert loaded == valid, f"{flips}: loaded {loaded}, valid {valid}"
    assert verdicts[True, True] > 50
    assert verdicts[False, False] > 50


def test_random_row_pointers(small: TinyModel, worker: Worker) -> None:
    """Row pointers and columns drawn anew, so that whole structures are wrong and not one byte."""
    data = small.gguf.read_bytes()
    rng = np.random.default_rng(4)
    path = small.gguf.with_name("pointers.gguf")
    for i in range(200):
        g = Gguf.parse(data)
        prefix = f"blk.{i % 2}.ffn_{('gate', 'up', 'down')[i % 3]}_delta."
        rows, col = g.tensor(prefix + "row_ptr"), g.tensor(prefix + "col")
        n = col.ne[0]
        if i % 5 < 3:
            points = np.sort(rng.integers(0, n + 1, rows.ne[0]))
            points[0], points[-1] = 0, n
            rows.data = points.astype("<i4").tobytes()
        if i % 5 > 1:
            col.data = rng.integers(0, 13 + 4 * (i % 3), n).astype("<u2").tobytes()
        path.unlink(missing_ok=True)
        path.write_bytes(g.build())
        loaded = check_verdict(worker.ask(path=str(path)), f"pointers {i}")
        if loaded:
            accepted_is_valid(path.read_bytes(), f"pointers {i}")


def test_unpadded_end(small: TinyModel, worker: Worker) -> None:
    """The last tensor's padding may be absent; less is refused, more too."""
    g = Gguf.parse(small.gguf.read_bytes())
    g.tensors.sort(key=lambda t: t.name == b"blk.0.ffn_gate_delta.scale")
    data = g.build()
    padding = len(g.tensors[-1].data) - 4 * g.tensors[-1].ne[0]
    assert padding == 20
    path = small.gguf.with_name("end.gguf")
    for content, ok in (
        (data[:-padding], True),
        (data[: -padding - 1], False),
        (data[:-1], False),
        (data, True),
        (data + b"\0", False),
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        assert check_verdict(worker.ask(path=str(path)), f"{len(content)} bytes") is ok
