"""sardine-bench: its tests, arithmetic and formats; the byte count of a token against plain sums."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import Sardine, bench
from sardine_gguf.bench_measure import Samples, SardineRunner, Test, decode_bytes, measure, profile
from sardine_gguf.convert import convert, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.gguf, base.gguf."""
    out = tmp_path_factory.mktemp("bench")
    tiny_base(out / "base")
    srde = srde_checkpoint(out / "srde.pt", out / "base", n_experts=4, density=0.05)
    convert(out / "base", srde, out / "model.gguf", outtype="q8_0")
    write_base(out / "base", out / "base.gguf", "q8_0")
    return out


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and outputs."""
    code = bench.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every test in every mode, in llama-bench's order, with all repetitions."""
    code, out, err = run(
        capsys, "-m", str(folder / "model.gguf"), "-p", "5,8", "-n", "3", "-pg", "4,2", "-d", "0,6",
        "-r", "2", "-t", "1", "-o", "json", "--progress",
    )  # fmt: skip
    rows = json.loads(out)
    assert code == 0
    names = ["pp5", "pp8", "tg3", "pp4+tg2"]
    names += [f"{n} @ d6" for n in names]
    assert [(r["test"], r["delta_mode"]) for r in rows] == [
        (n, m) for n in names for m in ("off", "gain", "sparse")
    ]
    for r in rows:
        assert len(r["samples_ts"]) == 2
        assert min(r["samples_ts"]) > 0
        assert r["avg_ts"] == pytest.approx(sum(r["samples_ts"]) / 2)
        assert sum(r["shares"].values()) == pytest.approx(1)
        assert ("deltas" in r["shares"]) == (r["delta_mode"] != "off")
        assert (r["ratio_to_off"] == 1) or r["delta_mode"] != "off"
        assert (r["gb_per_s"] is None) == (r["n_prompt"] > 0)
        assert r["memory_peak"] >= r["memory_resident"] > r["memory_anonymous"] > 0
    assert "tg3 @ d6: sparse: 2/2" in err


def test_formats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All formats tell the same rows; a base has the mode off alone."""
    given = ["-m", str(folder / "base.gguf"), "-p", "4", "-n", "2", "-r", "1", "-t", "1"]
    table = [line for line in run(capsys, *given)[1].splitlines() if line.startswith("|")]
    lines = run(capsys, *given, "-o", "jsonl")[1].splitlines()
    records = list(csv.DictReader(io.StringIO(run(capsys, *given, "-o", "csv")[1])))
    assert [json.loads(line)["test"] for line in lines] == ["pp4", "tg2"]
    assert [r["test"] for r in records] == ["pp4", "tg2"]
    assert {r["delta_mode"] for r in records} == {"off"}
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    assert [c.strip() for c in table[2].split("|")][5:8] == ["off", "1", "pp4"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-r", "0"], "-r is 0"),
    ],
)
def test_wrong_use(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    """Exit code 2 and one line."""
    code, _, err = run(capsys, "-m", str(folder / "base.gguf"), *arguments)
    assert code == 2
    assert word in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["-p", "x"], ["-pg", "4"], ["-p", "-1"], ["--delta-mode", "off,off"]]
)
def test_unreadable_options(folder: Path, arguments: list[str]) -> None:
    """argparse's own code 2."""
    with pytest.raises(SystemExit) as e:
        bench.main(["-m", str(folder / "base.gguf"), *arguments])
    assert e.value.code == 2


def test_samples() -> None:
    """The ratio is of medians: one bad repetition does not count."""
    fast = Samples(Test(0, 10), "off", [1.0, 2.0, 100.0])
    slow = Samples(Test(0, 10), "sparse", [4.0, 4.0, 4.0])
    assert slow.ratio(fast) == 0.5
    assert fast.speeds == [10, 5, 0.1]
    assert slow.deviation == 0
    assert Samples(Test(0, 1), "off", [1.0]).deviation == 0


def test_measure_takes_turns() -> None:
    """Every repetition runs everyone once from the same depth, and begins with another."""

    class Recorder:
        n_vocab = 10

        def __init__(self, name: str) -> None:
            self.name, self.n = name, 0

        def truncate(self, n_tokens: int) -> None:
            self.n = min(self.n, n_tokens)

        def decode(self, tokens: list[int]) -> None:
            log.append((self.name, self.n, len(tokens)))
            self.n += len(tokens)

    log: list[tuple[str, int, int]] = []
    found = measure([Recorder("a"), Recorder("b")], [Test(3, 1, 7)], 2, warmup=False)
    assert log[:2] == [("a", 0, 7), ("b", 0, 7)]
    assert [n for n, _, size in log[2:] if size == 3] == ["a", "b", "b", "a"]
    assert {(at, size) for _, at, size in log[2:]} == {(7, 3), (10, 1)}
    assert [len(s.seconds) for s in found[0]] == [2, 2]


def test_decode_bytes(folder: Path) -> None:
    """Weights but for the embedding's other rows, the values of 2 of 4 experts, and the cache."""
    with Sardine(folder / "model.gguf", delta_mode="off") as off:
        sparse = off.new_context(delta_mode="sparse")
        tensors = {t.name: t for t in off.model.file.tensors}
        h = off.model.hparams
        experts = {n for n in tensors if "_delta." in n or "ffn_gate_inp" in n}
        embedding = tensors["token_embd.weight"]
        base = sum(tensors[n].nbytes for n in tensors if n not in experts)
        base -= embedding.nbytes * (1 - 1 / embedding.shape[-1])
        cache = 2 * 2 * h["n_layer"] * h["head_dim"] * h["n_head_kv"]
        assert decode_bytes(off, Test(0, 4, 10)) == pytest.approx(base + cache * 12)
        added = sum(
            t.nbytes / (2 if n.endswith(".val") else 1)
            for n, t in tensors.items()
            if n in experts and not n.endswith((".mean", ".scale"))
        )
        small = decode_bytes(sparse, Test(0, 4)) - decode_bytes(off, Test(0, 4))
        assert 0 <= small - added < 0.001 * added + 4 * 4 * 4 * h["n_layer"]


def test_profile_names_the_parts(folder: Path) -> None:
    """What takes time in sparse is found under its part, for tokens and for batches."""
    with Sardine(folder / "model.gguf", delta_mode="sparse", n_threads=1) as model:
        for test in (Test(0, 3), Test(80, 0)):
            shares = profile(SardineRunner(model), test)
            assert {"deltas", "router", "ffn", "attention", "attention products"} <= set(shares)
            assert model.session.profile() == {}
