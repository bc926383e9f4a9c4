"""The command's words: help, plan, summary, warnings, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from make_checkpoint import srde_checkpoint
from sardine_gguf.convert import conversion
from sardine_gguf.convert.cli import main


def test_help_and_version(capsys):
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as stop:
            main([option])
        assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--outtype", "q4_k_m", "--delta-type", "--block-columns", "exit codes"):
        assert word in text


@pytest.mark.parametrize(
    "more",
    [
        ["--outtype", "q9"],
        ["--delta-type", "q4_0"],
        ["--delta-mode", "off"],
        ["--block-columns", "x"],
        ["--block-columns", "0"],
        ["--threads", "0"],
        ["--tensor-type", "attn_v"],
        ["--token-embedding-type", "q9"],
        ["--output-tensor-type", "i8"],
        ["--leave-output-tensor", "--output-tensor-type", "f16"],
        ["--outtype", "f16", "--tensor-type", "attn_v=q8_0"],
        ["--expert-names", "a,b"],
        ["--expert-names", "a,b,c,d,e,e"],
        ["--quiet", "--verbose"],
        ["--unknown"],
        ["extra"],
    ],
)
def test_wrong_use(base, srde, tmp_path, capsys, more):
    args = ["--base", str(base), "--srde", str(srde), "-o", str(tmp_path / "o.gguf"), *more]
    try:
        code = main(args)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_inputs(base, srde, tmp_path, capsys):
    out = str(tmp_path / "o.gguf")
    for pair in ((tmp_path / "no", srde), (base, tmp_path / "no")):
        assert main(["--base", str(pair[0]), "--srde", str(pair[1]), "-o", out]) == 4
        err = capsys.readouterr().err
        assert "No such file" in err
        assert len(err.splitlines()) == 1


def test_output(base, srde, tmp_path, capsys):
    args = ["--base", str(base), "--srde", str(srde), "-o", str(tmp_path / "o.gguf")]
    assert main([*args, "--dry-run", "--outtype", "Q4_K_M"]) == 0
    text = capsys.readouterr()
    assert "would write" in text.out
    assert "blk.2.ffn_down_delta.row_ptr" in text.out
    assert text.err == ""
    assert main([*args, "--expert-names", "a,b,c,d,e,f", "--delta-mode", "gain"]) == 0
    text = capsys.readouterr()
    assert "a, b, c, d, e, f" in text.out
    assert "mode gain" in text.out
    assert "blk.2" not in text.out
    assert text.err == ""
    assert main([*args, "--force", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_warnings_are_lines_without_control_characters(base, tmp_path, capsys):
    config = {"num_experts": "\x1b[31m\nred"}
    file = srde_checkpoint(tmp_path / "s.pt", base, config=config)
    assert main(["--base", str(base), "--srde", str(file), "-o", str(tmp_path / "o"), "-q"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: ")
    assert "num_experts" in err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 1


def test_verbose_shows_where_an_error_came_from(base, tmp_path, capsys):
    args = ["--base", str(base), "--srde", str(base), "-o", str(tmp_path / "o")]
    assert main(args) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert main([*args, "--verbose"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_progress_reaches_the_end(base, srde, tmp_path):
    seen = []
    report = conversion.convert(
        base, srde, tmp_path / "o.gguf", progress=lambda *args: seen.append(args)
    )
    phases = [phase for phase, _, _, _ in seen]
    assert phases == sorted(phases)  # reading, then writing
    for phase in ("reading", "writing"):
        done = [d for p, d, _, _ in seen if p == phase]
        assert done == sorted(done)
    assert seen[-1][1:3] == (report.size, report.size)
    assert {n for p, _, _, n in seen if p == "writing"} == {t.name for t in report.tensors}


def test_progress_bar_on_a_terminal(base, srde, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    args = ["--base", str(base), "--srde", str(srde), "-o", str(tmp_path / "o.gguf")]
    assert main(args) == 0


def test_closed_stdout(base, srde, tmp_path):
    """As in `convert-sardine ... | true`."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "sardine_gguf.convert", "--base", base, "--srde", srde, "-o",
         tmp_path / "o.gguf"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert process.returncode == 0
    assert process.stderr == ""
    assert (tmp_path / "o.gguf").exists()


def test_torch_is_not_imported(base, srde, tmp_path):
    code = (
        "import sys; from sardine_gguf.convert.cli import main; code = main(sys.argv[1:]);"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers')]);"
        "sys.exit(code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "--base", base, "--srde", srde, "-q", "-o",
         tmp_path / "o.gguf"], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ([], "{base}-sardine-Q4_K_M.gguf"),
        (["--outtype", "Q8_0"], "{base}-sardine-Q8_0.gguf"),
        (["--adapter"], "{base}-adapter.gguf"),
        (["-o", "a-{ftype}-{OUTTYPE}.gguf", "--outtype", "iq4_xs"], "a-iq4_xs-IQ4_XS.gguf"),
        (["-o", "b-{FTYPE}.gguf"], "b-Q4_K_M.gguf"),
    ],
)
def test_outfile_names(base, srde, tmp_path, monkeypatch, more, name):
    monkeypatch.chdir(tmp_path)
    assert main(["--base", str(base), "--srde", str(srde), "-q", *more]) == 0
    assert [p.name for p in tmp_path.iterdir()] == [name.format(base=base.name)]


def test_outfile_names_of_bases(base, srde, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--base", str(base), "--base-only", "-q", "-o", "b.gguf"]) == 0
    assert main(["--base", str(base), "--base-only", "-q"]) == 0
    assert main(["--base", "b.gguf", "--srde", str(srde), "-q"]) == 0
    names = {"b.gguf", f"{base.name}-Q4_K_M.gguf", "b-sardine.gguf"}
    assert {p.name for p in tmp_path.iterdir()} == names
    # Its own name is not a new one.
    assert main(["--base", "b.gguf", "--base-only", "--force"]) == 3
    for more in (["--base", "b.gguf"], ["--base", str(base), "--adapter"]):
        capsys.readouterr()
        assert main([*more, "--srde", str(srde), "-o", "x-{ftype}.gguf"]) == 2
        assert "has no out type" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_folder_above_the_model(base, srde, tmp_path, capsys):
    assert main(["--base", str(base.parent), "--srde", str(srde), "-o", str(tmp_path / "o")]) == 4
    text = capsys.readouterr().err
    assert "no config.json or params.json, expected a model folder" in text
    assert f"did you mean {base.parent}" in text
    assert main(["--base", str(tmp_path / "no"), "--srde", str(srde), "-o", "o.gguf"]) == 4
    assert f"{tmp_path / 'no'}: No such file or directory" in capsys.readouterr().err
