"""convert-sardine --base-only: an ordinary GGUF file, and the base that ours runs with `off`."""

from __future__ import annotations

import itertools
from pathlib import Path

import llama_cpp
import pytest
import read_sardine
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import Sardine
from sardine_gguf.convert import OptionError, convert, write_base
from sardine_gguf.convert.atomic import AtomicFile
from sardine_gguf.convert.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-sardine"
PROMPTS = ("What is 15% of 80?", "What is the opposite of hot?", "The")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The bundled example and a random model: (folder, checkpoint)."""
    folder = tmp_path_factory.mktemp("models")
    wide = {"hidden": 256, "inner": 256, "heads": 4, "head_dim": 32, "std": 0.05}
    base = tiny_base(folder / "random", **wide)
    return {
        "example": (EXAMPLE / "base", EXAMPLE / "srde_weights.pt"),
        "random": (base, srde_checkpoint(folder / "srde_weights.pt", base)),
    }


def theirs(path, prompts, n):
    """Greedy texts of llama-cpp-python, from its tokens.

    Its create_completion drops bytes that are not UTF-8, and goes on by a token after them.
    """
    llama = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, flash_attn=True, verbose=False)
    try:
        out = []
        for prompt in prompts:
            tokens = itertools.islice(llama.generate(llama.tokenize(prompt.encode()), temp=0.0), n)
            until = list(itertools.takewhile(lambda t: t != llama.token_eos(), tokens))
            out.append(llama.detokenize(until).decode("utf-8", "replace"))
        return out
    finally:
        llama.close()


# Types whose weights libllama does not rearrange: there both compute the same bits.
@pytest.mark.parametrize("outtype", ["f16", "q8_0", "q6_k", "q5_k_m", "iq4_xs"])
@pytest.mark.parametrize("name", ["example", "random"])
def test_the_same_text_as_llama_cpp_python(models, tmp_path, name, outtype):
    base, srde = models[name]
    plain, full = tmp_path / "plain.gguf", tmp_path / "full.gguf"
    arguments = ["--base", str(base), "--base-only", "-o", str(plain), "--outtype", outtype, "-q"]
    assert main(arguments) == 0
    convert(plain, srde, full)
    with Sardine(full, delta_mode="off", n_threads=1, n_ctx=256) as model:
        texts = [model.generate(p, max_tokens=24, temperature=0) for p in PROMPTS]
    assert texts == theirs(plain, PROMPTS, 24)
    assert any(texts)


def test_nothing_of_the_experts_is_in_it(base, srde, tmp_path):
    report = write_base(base, tmp_path / "plain.gguf")
    convert(base, srde, tmp_path / "full.gguf")
    kv, full = (read_sardine.keys(tmp_path / f"{n}.gguf") for n in ("plain", "full"))
    assert kv == {k: v for k, v in full.items() if not k.startswith("sardine.")}
    assert not any("delta" in n or "gate_inp" in n for n in read_sardine.tensors(report.outfile))
    assert report.size == report.outfile.stat().st_size
    assert report.out_type == "q4_k_m"
    assert report.layers == []


def test_verify_reads_back_what_was_written(base, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="a dry run writes nothing"):
        write_base(base, tmp_path / "o", verify=True, dry_run=True)
    real = AtomicFile.write

    def spoiled(self, data):
        data = bytearray(data)
        if len(data) > 100_000:  # a matrix
            data[-1] ^= 1
        real(self, data)

    folder = tiny_base(tmp_path / "m", tokenizer=False, hidden=256, inner=256)
    monkeypatch.setattr(AtomicFile, "write", spoiled)
    with pytest.raises(OSError, match="another byte than the base's"):
        write_base(folder, tmp_path / "o.gguf", "f32", verify=True)
    assert not (tmp_path / "o.gguf").exists()


def test_a_gguf_base_is_copied(base, tmp_path):
    write_base(base, tmp_path / "a.gguf", "q8_0")
    report = write_base(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert report.out_type is None


def test_command(base, srde, tmp_path, capsys):
    out = tmp_path / "o.gguf"
    args = ["--base", str(base), "--base-only", "-o", str(out)]
    assert main([*args, "--dry-run"]) == 0
    text = capsys.readouterr()
    assert "would write" in text.out
    assert "blk.2.ffn_down.weight" in text.out
    assert text.err == ""
    assert not out.exists()
    assert main([*args, "--verify"]) == 0
    text = capsys.readouterr().out
    assert "none: the base alone" in text
    assert "30 base tensors equal" in text
    assert main(args) == 3
    assert "use --force" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--srde", "x.pt"],
        ["--adapter"],
        ["--compensation", "residual"],
        ["--no-compensate"],
        ["--delta-type", "f16"],
        ["--delta-mode", "gain"],
        ["--expert-names", "a,b"],
        ["--block-columns", "64"],
    ],
)
def test_options_of_experts_are_refused(base, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as stop:
        main(["--base", str(base), "--base-only", "-o", str(tmp_path / "o"), *more])
    assert stop.value.code == 2
    named = {"--no-compensate": "--compensation"}.get(more[0], more[0])
    assert f"{named}: not with --base-only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_or_base_only_is_needed(base, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--base", str(base), "-o", str(tmp_path / "o")])
    assert stop.value.code == 2
    assert "--srde is required" in capsys.readouterr().err
