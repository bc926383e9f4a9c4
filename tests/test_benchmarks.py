"""The parts of benchmarks/ that are not a matter of time."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sardine_gguf import Sardine
from sardine_gguf.bench_cost import Cost, batches_of, costs
from sardine_gguf.bench_measure import SardineRunner, Test

FOLDER = Path(__file__).parents[1] / "benchmarks"
WIDTHS = {"hidden": 256, "inner": 512, "heads": 4, "heads_kv": 2, "head_dim": 64, "vocab": 1024}
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of three experts, 2 % of the weights."""
    path = tmp_path_factory.mktemp("benchmarks") / "model.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import make_model

        patch.setattr(make_model, "_POOL_ROWS", 1 << 16)
        make_model.make(path, layers=2, n_experts=3, density=0.02, widths=WIDTHS)
    return path


def test_batches() -> None:
    assert batches_of(7, 3, 10) == [(3, 10), (3, 13), (1, 16)]
    assert batches_of(1, 512, 0.5) == [(1, 0.5)]


def test_operations_of_a_prompt(model_file: Path) -> None:
    """Five tokens after ten in batches of two: products counted one by one; the last of two layers has an FFN
    for each batch's last token."""
    with Sardine(model_file, n_ctx=64, n_batch=2, delta_mode="sparse") as model:
        found = costs(model, 5, 10)
        h, inner, kv = WIDTHS["hidden"], WIDTHS["inner"], WIDTHS["heads_kv"] * WIDTHS["head_dim"]
        q = WIDTHS["heads"] * WIDTHS["head_dim"]
        assert found["ffn"].multiply_adds == (5 + 3) * 3 * h * inner
        assert found["attention products"].multiply_adds == 5 * 2 * (2 * h * q + 2 * h * kv)
        assert found["router"].multiply_adds == 5 * 2 * 3 * h
        assert found["output"].multiply_adds == 3 * h * WIDTHS["vocab"]  # a batch's last token
        positions = 3 * round(0.02 * h * inner)
        assert found["deltas"].multiply_adds == (5 + 3) * 2 * positions  # 2 experts a token
        seen = sum(range(11, 16))  # positions of the five tokens
        assert found["attention"].multiply_adds == 2 * 2 * q * seen
        assert found["attention"].nbytes == 2 * 2 * 2 * kv * (12 + 14 + 15)


def test_bytes_of_a_batch(model_file: Path) -> None:
    """Weights once a batch; of the values those of the experts that its tokens are expected to have."""
    with Sardine(model_file, n_ctx=64, n_batch=8, delta_mode="sparse") as model:
        one, eight, more = (costs(model, n) for n in (1, 8, 9))
        assert one["ffn"].nbytes == eight["ffn"].nbytes == more["ffn"].nbytes / 2
        values = sum(t.nbytes for t in model.model.file.tensors if t.name.endswith("_delta.val"))
        rest = one["deltas"].nbytes - values * 2 / 3
        first, last = (values / 2 * (1 - (1 / 3) ** n) for n in (8, 1))
        assert eight["deltas"].nbytes == pytest.approx(rest + first + last)
        off = costs(model.new_context(delta_mode="off"), 8)
        assert "deltas" not in off
        assert "router" not in off


def a_limit(roofline: ModuleType) -> Any:
    return roofline.Limits(
        n_threads=2, memory=10e9, memory_size=1 << 30, cache=None, cache_size=0, floats=1e9,
        bytes_=None, products={(12, 1): 2e9, (12, 8): 4e9},
    )  # fmt: skip


def test_least_times() -> None:
    """The larger of bytes and operations; a batch's products at a batch's rate, but for the output's."""
    import roofline

    found = {
        "ffn": Cost(1e9, {12: 8e9}),
        "output": Cost(1e9, {12: 1e9}),
        "attention": Cost(20e9, {}, 1e9),
    }
    lines = roofline.lines_of(found, {"ffn": 4.0, "rest": 1.0}, a_limit(roofline), 8)
    by_part = {x.part: x for x in lines}
    assert (by_part["ffn"].by_bytes, by_part["ffn"].by_operations) == (0.1, 2.0)
    assert by_part["ffn"].ratio == 2.0
    assert by_part["output"].by_operations == 0.5
    assert by_part["attention"].least == 2.0
    assert by_part["rest"].ratio is None
    last = roofline.markdown(lines).splitlines()[-1]
    assert last.startswith("| all | 22.000 | 20.000 | 4500.00 ")
    assert last.endswith("| 5000.00 | 1.11 |")


@needs_compiler
@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_made_up_context(kv_type: Any, model_file: Path) -> None:
    """It loads as a saved state does, of the same size, and the next token sees it."""
    import made_up_state

    with Sardine(model_file, n_ctx=64, kv_type=kv_type, delta_mode="sparse") as model:
        runner = SardineRunner(model)
        model.eval(list(range(20)))
        model.session.truncate(19)  # no logits, as in a made-up one
        evaluated = len(model.session.save_bytes())
        alone = model.new_context().eval([7])
        made_up_state.fill_made_up(runner, 30, random.Random(0))
        assert model.session.n_tokens == 30
        logits = model.eval([7])
        assert np.isfinite(logits).all()
        assert not np.allclose(logits, alone)
        made_up_state.fill_made_up(runner, 19, random.Random(0))  # deep enough: cut
        assert model.session.n_tokens == 19
        assert len(made_up_state.made_up_state(model, 19)) == evaluated


@needs_compiler
def test_loops_of_the_machine_are_checked() -> None:
    """They raise if a sum is wrong, so a rate is one of work that was done."""
    import machine

    for n_threads in (1, 2):
        assert machine.read_rate(1 << 20, n_threads, 0) > 0
        assert machine.float_rate(n_threads, 0) > 0
        dots = machine.byte_rate(n_threads, 0)
        assert dots is None or dots > 0
    for kind in (0, 1, 8, 12, 14):
        assert machine.product_rate(kind, 2, 1, 0) > 0
    with pytest.raises(ValueError, match="type 99"):
        machine.product_rate(99, 1, 1, 0)


def test_curves_go_on_where_they_were(model_file: Path, tmp_path: Path) -> None:
    """Each repetition is kept; a run with other settings is refused."""
    import curves

    out = tmp_path / "c.json"
    lines = [curves.Line("off", "off", None), curves.Line("sparse", "sparse", None)]
    tests = [Test(0, 2), Test(3, 0)]
    options = {"n_threads": 1, "n_batch": 8, "kv_type": "f16"}
    for repetitions in (1, 3):
        results = curves.Results(out, {"n_threads": 1})
        curves.run_study("depth", lines, tests, results, str(model_file), options, repetitions)
        found = json.loads(out.read_text())["studies"]["depth"]
        assert {len(e["seconds"]) for t in found.values() for e in t.values()} == {repetitions}
    assert set(found) == {"tg2", "pp3"}
    assert set(found["tg2"]) == {"off", "sparse"}
    with pytest.raises(ValueError, match="n_threads"):
        curves.Results(out, {"n_threads": 2})
    data = json.loads(out.read_text())
    assert curves.table(data).count("| 3 |") == 4
    curves.draw(data, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_settings_of_openmp_are_the_variants_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import threads

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    found = threads.clean_environment({"OMP_PLACES": "cores"})
    assert {k: v for k, v in found.items() if "OMP_" in k} == {"OMP_PLACES": "cores"}
    assert found["PATH"] == os.environ["PATH"]


@needs_compiler
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="replaces glibc's malloc")
def test_a_token_allocates_no_graph() -> None:
    """What malloc is asked for per token is a small part of a graph, and none of it stays."""
    done = subprocess.run(
        [sys.executable, FOLDER / "threads.py", "allocation", "-t", "1", "-n", "8"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| off |") == done.stdout.count("| sparse |") == 1
