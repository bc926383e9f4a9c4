"""What a conversion reads, how much memory it takes, and what it says meanwhile."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf.convert import convert, progress, write_base
from sardine_gguf.convert.safetensors_file import StoredTensor

# The high-water mark of the process itself; getrusage would include the one that forked it.
_PEAK = """
import sys
from pathlib import Path
from sardine_gguf.convert.cli import main
code = main([*sys.argv[1:], "-q"])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_mib(arguments):
    """MiB that convert-sardine had resident at most, pages of mapped files included."""
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout) / 1024


@pytest.mark.parametrize("more", [["--compensation", "extracted"], ["--verify"]])
def test_memory_does_not_grow_with_the_layers(tmp_path, more):
    """Six times the layers, 70 MiB more of base and 30 MiB more of experts."""
    peaks = []
    for layers in (2, 12):
        widths = {"hidden": 512, "inner": 2048, "layers": layers, "tokenizer": False}
        base = tiny_base(tmp_path / f"m{layers}", dtype=torch.bfloat16, **widths)
        srde = srde_checkpoint(tmp_path / f"s{layers}.pt", base, density=0.02, duplicates=False)
        out = tmp_path / f"o{layers}.gguf"
        arguments = ["--base", base, "--srde", srde, "-o", out, "--outtype", "q8_0", *more]
        peaks.append(peak_mib([*arguments, "--threads", "1"]))
    assert peaks[1] < peaks[0] + 16


def test_a_dry_run_reads_no_weights(base, srde, tmp_path, monkeypatch):
    def never(self, *arguments):
        raise AssertionError(f"{self.name} is read")

    for reads in ("rows", "array", "columns", "elements"):
        monkeypatch.setattr(StoredTensor, reads, never)
    report = convert(base, srde, tmp_path / "o.gguf", outtype="q5_k_m", dry_run=True)
    lines = report.plan().splitlines()
    assert len(lines) == len(report.tensors)
    assert any("blk.1.ffn_down.weight" in line and "[100, 64]" in line for line in lines)
    assert write_base(base, tmp_path / "o.gguf", dry_run=True).size > 0
    assert not list(tmp_path.iterdir())


def test_names_reach_the_terminal_without_control_characters(base, srde, tmp_path):
    """A GGUF base's tensors may have any names."""
    report = convert(base, srde, tmp_path / "o.gguf", dry_run=True)
    first = report.tensors[0]
    report.tensors[0] = dataclasses.replace(first, name="a\x1b[2J\x07\u202e\n\u0085b")
    plan = report.plan()
    assert len(plan.split("\n")) == len(report.tensors)
    assert all(line.isprintable() for line in plan.split("\n"))
    assert plan.startswith("a")


def test_each_phase_is_reported_from_start_to_end(base, srde, tmp_path):
    seen = []
    convert(
        base, srde, tmp_path / "o", outtype="q8_0", verify=True, progress=lambda *a: seen.append(a)
    )
    phases = list(dict.fromkeys(phase for phase, *_ in seen))
    assert phases == ["reading", "writing", "verifying"]
    for phase in phases:
        steps = [(done, total) for p, done, total, _ in seen if p == phase]
        assert [d for d, _ in steps] == sorted(d for d, _ in steps)
        assert len({total for _, total in steps}) == 1
        assert steps[-1][0] <= steps[-1][1]
    whats = {what for phase, _, _, what in seen if phase == "reading"}
    assert {"positions of layer 2", "values of layer 2"} <= whats


def test_lines_off_a_terminal(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    update = progress.lines()
    size = 2 * progress.QUIET_BYTES
    for phase, total in (("reading", 10), ("writing", size)):
        for i in range(101):
            update(phase, total * i // 100, total, "blk.0.attn_q.weight")
            clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[4] == "writing 50 %: 1.07 GB of 2.15 GB, 21.47 MB/s, 50 s left"


def test_the_bar_names_the_phase(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    update, close = progress.bar()
    update("reading", 0, 100, "positions of layer 3")
    update("writing", 5, 1000, "\x1b]0;x\x07")
    update("writing", 10, 1000, "blk.0.attn_q.weight")
    close()
    err = capsys.readouterr().err
    assert "writing blk.0.attn_q.weight" in err
    assert "\x1b]0" not in err
    assert "reading" not in err.splitlines()[-1]


@pytest.mark.parametrize("compensation", ["residual", "extracted"])
def test_compensation_with_matrices_of_other_types(base, srde, tmp_path, compensation):
    """Nothing is lost where a matrix is not quantized."""
    report = convert(
        base,
        srde,
        tmp_path / "o.gguf",
        outtype="q8_0",
        tensor_types=["ffn_up=f32", "ffn_gate=f16"],
        compensation=compensation,
        verify=True,
    )
    kinds = {t.name: report.type_names[t.type] for t in report.tensors}
    assert kinds["blk.0.ffn_up.weight"] == "f32"
    assert kinds["blk.0.ffn_gate.weight"] == "f16"
