"""sardine-inspect: facts against plain readers, the check against every crafted defect, exit codes."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import read_sardine
from gguf_mutate import Gguf, load
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import FormatError, inspect_check, inspect_cli, inspect_plot
from sardine_gguf.convert import convert, schema, write_base
from sardine_gguf.convert.gguf_file import TensorSpec, pack_header, padded, spec
from sardine_gguf.inspect_check import _F16_FIELDS, check, check_experts
from sardine_gguf.inspect_facts import gather
from sardine_gguf.inspect_plot import BINS, expert_similarity, value_histogram
from sardine_gguf.packed_file import PackedFile
from test_bad_base import TOKENIZERS
from test_bad_files import CASES as BAD_FILES
from test_bad_sardine import CASES as BAD_SARDINE
from test_bad_sardine import GOOD, SHARED_CASES

BAD_BASE = {name: case for name, case in TOKENIZERS.items() if case[1]}
NAMES = ["math", "logic", "code", "science", "planning", "abstract", "expert_6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.gguf, base.gguf, adapter.gguf of one model; layers 0 and 2 have experts."""
    out = tmp_path_factory.mktemp("inspect")
    tiny_base(out / "base", inner=100)
    srde = srde_checkpoint(out / "srde.pt", out / "base", layers=[0, 2], n_experts=7, density=0.03)
    options = {"outtype": "q4_k_m", "block_columns": 48, "compensation": "none"}
    convert(out / "base", srde, out / "model.gguf", **options)
    convert(out / "base", srde, out / "adapter.gguf", adapter=True, delta_type="f16")
    write_base(out / "base", out / "base.gguf", "q8_0")
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the crafted defects are made for: 2 layers, 3 experts, column blocks of 20."""
    out = tmp_path_factory.mktemp("small")
    tiny_base(out / "base", hidden=32, inner=33, layers=2, heads=2, heads_kv=1, vocab=270)
    srde = srde_checkpoint(out / "srde.pt", out / "base", n_experts=3, density=0.05)
    convert(out / "base", srde, out / "m.gguf", outtype="f32", delta_type="q8_0", block_columns=20)
    return out / "m.gguf"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    try:
        code = inspect_cli.main([str(a) for a in args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def facts(capsys: pytest.CaptureFixture[str], *args: object) -> Any:
    code, out, err = run(capsys, *args, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_facts_of_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against gguf's reader and the plain reader of the format."""
    path = folder / "model.gguf"
    found = facts(capsys, path)
    tensors = read_sardine.tensors(path)
    layers = read_sardine.layers(path)
    assert found["kind"] == "model"
    assert found["size"] == path.stat().st_size == sum(found["bytes"].values())
    base = [t for t in tensors.values() if "delta" not in t.name and "gate_inp" not in t.name]
    b, x = found["base"], found["experts"]
    assert b["parameters"] == sum(int(t.n_elements) for t in base)
    assert {k: v["tensors"] for k, v in b["types"].items()} == {
        k.lower(): sum(t.tensor_type.name == k for t in base)
        for k in {t.tensor_type.name for t in base}
    }
    assert sum(v["bytes"] for v in b["types"].values()) == sum(int(t.n_bytes) for t in base)
    shape = [b[k] for k in ("layers", "embedding_length", "feed_forward_length", "head_count",
                            "head_count_kv", "vocab_size", "architecture", "name")]  # fmt: skip
    assert shape == [3, 64, 100, 4, 2, 320, "mistral3", "Base"]
    assert (x["count"], x["used_count"], x["names"], x["mode"]) == (7, 2, NAMES, "sparse")
    assert (x["value_types"], x["block_columns"], x["compensation"]) == (["q8_0"], 48, "none")
    assert [layer["layer"] for layer in x["layers"]] == [0, 2]
    size = 64 * 100
    for layer in x["layers"]:
        mine = layers[layer["layer"]]
        counts = np.bincount(mine.positions // size, minlength=3)
        assert [m["positions"] for m in layer["matrices"].values()] == counts.tolist()
        assert [m["density"] for m in layer["matrices"].values()] == (counts / size).tolist()
        np.testing.assert_array_equal(layer["gains"], 1 + mine.mean.astype(np.float64))
    assert x["positions"] == sum(len(v.positions) for v in layers.values())
    assert x["values"] == 7 * x["positions"]
    align = {
        "index": ("row_ptr", "col"), "values": ("val", "scale"), "router": ("mean", "weight"),
    }  # fmt: skip
    for part, ends in align.items():
        own = [t for t in tensors.values() if t not in base and t.name.endswith(ends)]
        assert found["bytes"][part] == sum(padded(int(t.n_bytes), 32) for t in own)


def test_text_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, err = run(capsys, folder / "model.gguf")
    x = facts(capsys, folder / "model.gguf")["experts"]
    assert (code, err) == (0, "")
    for part in (
        "base and experts", "Base (mistral3): 3 layers of 64, feed-forward 100", "q8_0", "in 2 layers",
        ", ".join(NAMES), f"{x['positions']:,}", "3.000%", "starts in sparse", "compensation none",
        f"{x['layers'][1]['matrices']['up']['positions']:,}",
    ):  # fmt: skip
        assert part in text, part
    gains = [layer["gains"][3] for layer in x["layers"]]
    line = next(line for line in text.splitlines() if line.split()[:1] == ["science"])
    assert line.split()[1:] == [f"{g:.6f}" for g in (min(gains), sum(gains) / 2, max(gains))]
    assert max(len(line) for line in text.splitlines()) < 130


def test_other_kinds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, base, adapter = (
        facts(capsys, folder / f"{k}.gguf", "--check") for k in ("model", "base", "adapter")
    )
    assert (base["kind"], base["experts"]) == ("base", None)
    assert set(base["bytes"]) == {"base", "header"}
    assert adapter["kind"] == "adapter"
    assert adapter["base"] == {**model["base"], "parameters": 0, "types": {}}
    assert adapter["bytes"]["base"] == 0
    changed = {"value_types": ["f16"], "block_columns": schema.DEFAULT_BLOCK_COLUMNS}
    assert adapter["experts"] == {**model["experts"], **changed}
    assert "experts alone" in run(capsys, folder / "adapter.gguf")[1]
    text = run(capsys, folder / "base.gguf")[1]
    assert "plain base" in text
    assert "experts " not in text
    assert adapter["check"]["base_tensors"] == 0
    assert base["check"]["base_tensors"] == model["check"]["base_tensors"] == 30


@pytest.mark.parametrize("method", ["residual", "extracted"])
def test_compensation(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown, and the shared part counted and checked."""
    path = tmp_path / "c.gguf"
    convert(folder / "base", folder / "srde.pt", path, outtype="q8_0", compensation=method)
    found = facts(capsys, path, "--check")
    x = found["experts"]
    tensors = read_sardine.tensors(path).values()
    size = sum(padded(int(t.n_bytes), 32) for t in tensors if "_delta.shared" in t.name)
    assert found["bytes"].get("shared", 0) == size
    assert (size > 0) == (method == "extracted")
    assert x["compensation"] == method
    assert x["shared_types"] == (["f16"] if size else [])
    assert found["size"] == sum(found["bytes"].values())
    assert found["check"]["values"] == x["positions"] * (8 if size else 7)
    text = run(capsys, path)[1]
    assert f"compensation {method}" in text
    assert ("a shared part in f16" in text) == bool(size)


@pytest.mark.parametrize("name", SHARED_CASES)
def test_check_finds_every_defect_of_a_shared_part(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = small.with_name("shared.gguf")
    if not shared.exists():
        convert(
            small.parent / "base", small.parent / "srde.pt", shared, outtype="q8_0",
            delta_type="q8_0", block_columns=20, compensation="extracted", shared_type="q8_0",
        )  # fmt: skip
    g = load(shared)
    SHARED_CASES[name][0](g)
    (tmp_path / "bad.gguf").write_bytes(g.build())
    assert run(capsys, shared, "--check")[0] == 0
    assert run(capsys, tmp_path / "bad.gguf", "--check")[0] == 3
    with pytest.raises(FormatError):  # also without the runtime's part of the check
        check_experts(PackedFile(tmp_path / "bad.gguf"))


# ---- --check ----


def test_check_says_what_it_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, folder / "model.gguf", "--check")
    assert code == 0
    assert re.search(r"check +ok: 1,152 positions, 8,064 values, 30 base tensors$", text.strip())


def test_check_names_what_it_cannot_look_into(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types that ggml knows and gguf-py does not."""
    monkeypatch.setattr(inspect_check, "_KINDS", {0: "F32"})
    code, text, _ = run(capsys, folder / "base.gguf", "--check")
    assert code == 0
    assert "not looked into: token_embd.weight, blk.0.attn_q.weight" in text


@pytest.mark.parametrize("name", [*BAD_SARDINE, *BAD_BASE, *BAD_FILES])
def test_check_finds_every_defect(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 and one line; without --check the same, or success where only content is bad."""
    change = {**BAD_FILES, **BAD_BASE, **BAD_SARDINE}[name][0]
    g = load(small)
    change(g)
    (tmp_path / "bad.gguf").write_bytes(getattr(g, "raw", None) or g.build())
    for args in (["--check"], ["--check", "--json"], []):
        code, out, err = run(capsys, tmp_path / "bad.gguf", *args)
        if args or code:
            assert code == 3, err
            assert out == ""
            assert err.startswith("sardine-inspect: error: ")
            assert len(err.splitlines()) == 1
        else:
            assert err == ""


@pytest.mark.parametrize("name", GOOD)
def test_check_accepts_unusual_files(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = load(small)
    GOOD[name](g)
    (tmp_path / "good.gguf").write_bytes(g.build())
    assert run(capsys, tmp_path / "good.gguf", "--check")[0] == 0


def content_defects() -> list[str]:
    """Defects of an index or value, which the header's shapes do not show."""
    parts = ("row_ptr", "col", "val", "scale", "mean", "router")
    kinds = ("_nan", "_inf", "swapped", "twice", "decreases", "starts", "ends", "_3", "_0", "width")
    names = [n for n in BAD_SARDINE if n.startswith(parts) and any(k in n for k in kinds)]
    return [
        n
        for n in names
        if n != "val_q5_0" and BAD_SARDINE[n][1].endswith((".val", ".col", ".row_ptr", ".scale"))
    ]


@pytest.mark.parametrize("name", content_defects())
def test_the_second_pass_finds_content_defects_alone(
    name: str, small: Path, tmp_path: Path
) -> None:
    """PackedMatrix.defect is a check of its own, not an echo of the runtime's."""
    g = load(small)
    BAD_SARDINE[name][0](g)
    (tmp_path / "bad.gguf").write_bytes(g.build())
    file = PackedFile(tmp_path / "bad.gguf")
    found = [(matrix, d[0]) for _, matrix, packed in file.matrices() if (d := packed.defect())]
    assert ("gate", BAD_SARDINE[name][1].rsplit(".", 1)[1]) in found


def test_padding_and_base_weights(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the runtime does not read: padding of q8_0 blocks, numbers of the base."""
    path = tmp_path / "bad.gguf"

    def check(change: Any, words: str) -> None:
        g = load(small)
        change(g)
        path.write_bytes(g.build())
        code, _, err = run(capsys, path, "--check")
        assert code == 3
        assert words in err

    def pad(g: Gguf) -> None:
        n, t = g.tensor("blk.0.ffn_gate_delta.col").ne[0], g.tensor("blk.0.ffn_gate_delta.val")
        assert n % 32
        g.poke(t.name.decode(), "b", 34 * (n // 32) + 2 + 31, 1)

    check(pad, "padding")
    check(lambda g: g.poke("blk.1.ffn_up.weight", "f", 1055, math.nan), "blk.1.ffn_up.weight")
    check(lambda g: g.poke("output_norm.weight", "f", 0, math.inf), "output_norm.weight")


@pytest.mark.parametrize("kind", ["F16", "BF16", *_F16_FIELDS])
def test_where_blocks_hold_their_numbers(kind: str) -> None:
    """The offsets in _F16_FIELDS against gguf's own dequantization: infinity there shows in the weights."""
    quant = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quant]
    if kind in ("F16", "BF16"):
        return
    rng = np.random.default_rng(1)
    data = rng.integers(1, 255, (1, size), np.uint8)
    for offset in _F16_FIELDS[kind]:
        data[0, offset : offset + 2] = np.array([0x3C00], "<u2").view(np.uint8)
    with np.errstate(all="ignore"):
        assert np.isfinite(gguf.dequantize(data, quant)).all()
        for offset in _F16_FIELDS[kind]:
            bad = data.copy()
            bad[0, offset : offset + 2] = np.array([0x7C00], "<u2").view(np.uint8)
            assert not np.isfinite(gguf.dequantize(bad, quant)).all(), offset
    assert gguf.dequantize(data, quant).size == block


# ---- --plot ----


def test_plot(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    for kind in ("model", "adapter"):
        code, text, err = run(capsys, folder / f"{kind}.gguf", "--plot", out)
        assert (code, err) == (0, "")
        assert "positions" in text
        data = out.read_bytes()
        assert data.startswith(b"\x89PNG\r\n")
        assert int.from_bytes(data[16:20], "big") >= 1200
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    run(capsys, folder / "adapter.gguf", "--plot", tmp_path / "b.png")
    assert out.read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_is_drawn(folder: Path) -> None:
    """Similarities and histogram against the plain reader."""
    file = PackedFile(folder / "model.gguf")
    layers = read_sardine.layers(folder / "model.gguf")
    cosines = []
    for layer in layers.values():
        unit = layer.values / np.linalg.norm(layer.values, axis=1, keepdims=True)
        cosines.append(unit @ unit.T)
    np.testing.assert_allclose(expert_similarity(file), np.mean(cosines, axis=0), atol=1e-12)
    edges, counts = value_histogram(file)
    values = np.concatenate([layer.values for layer in layers.values()], axis=1)
    assert counts.shape == (7, BINS)
    assert edges[-1] == -edges[0] == np.abs(values).max()
    for e, row in enumerate(values):
        np.testing.assert_array_equal(counts[e], np.histogram(row, edges)[0])


def test_plot_of_strange_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long and odd names, many experts, zero values, no positions."""
    names = ["a$b$", "x" * 200, *(f"e{i}" for i in range(28))]
    many = srde_checkpoint(tmp_path / "many.pt", folder / "base", n_experts=30)
    convert(folder / "base", many, tmp_path / "many.gguf", adapter=True, expert_names=names)
    none = srde_checkpoint(tmp_path / "none.pt", folder / "base", positions=0)
    convert(folder / "base", none, tmp_path / "none.gguf", adapter=True)
    zero = srde_checkpoint(tmp_path / "zero.pt", folder / "base", strength=0.0, layers=[1])
    convert(folder / "base", zero, tmp_path / "zero.gguf", adapter=True)
    for name in ("many", "none", "zero"):
        result = run(
            capsys, tmp_path / f"{name}.gguf", "--plot", tmp_path / f"{name}.png", "--check"
        )
        assert (result[0], result[2]) == (0, "")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_plot_needs(folder: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "model.png").symlink_to(folder / "adapter.gguf")
    for args, code, words in (
        ([folder / "base.gguf", "--plot", tmp_path / "a.png"], 2, "plain base"),
        ([tmp_path / "model.png", "--plot", tmp_path / "model.png"], 3, "is the input"),
        ([folder / "adapter.gguf", "--plot", tmp_path / "pipe.png"], 3, "not a regular file"),
        ([folder / "model.gguf", "--plot", tmp_path / "a.gguf"], 2, ".png"),
        ([folder / "model.gguf", "--plot", tmp_path / "no" / "a.png"], 4, "No such file"),
    ):
        found, _, err = run(capsys, *args)
        assert found == code
        assert words in err
    g = load(small)
    g.poke("blk.0.ffn_up_delta.val", "H", 0, 0x7C00)
    (tmp_path / "bad.gguf").write_bytes(g.build())
    assert run(capsys, tmp_path / "bad.gguf", "--plot", tmp_path / "a.png")[0] == 3
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, folder / "model.gguf", "--plot", tmp_path / "a.png")
    assert code == 2
    assert "pip install 'sardine_gguf[plot]'" in err
    assert not (tmp_path / "a.png").exists()


# ---- as a program ----


def test_exit_codes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.gguf").touch()
    for args, code, words in (
        ([], 2, "FILE"),
        ([tmp_path / "none.gguf"], 4, "No such file"),
        ([tmp_path], 4, "directory"),
        ([tmp_path / "empty.gguf"], 3, "empty"),
        ([folder / "srde.pt"], 3, "not a GGUF file"),
        (["a\0b"], 2, "null byte"),
        ([folder / "model.gguf", "--chec"], 2, "unrecognized"),
    ):
        found, out, err = run(capsys, *args)
        assert (found, out) == (code, "")
        assert words in err
    assert run(capsys, "--version")[1].startswith("sardine-inspect ")
    assert "--plot" in run(capsys, "--help")[1]


def test_hostile_names_cannot_drive_the_terminal(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = load(small)
    g.set("general.name", "str", "\x1b[31mred\nline")
    g.set_array("sardine.expert_names", "str", [b"a\x1b[0m", b"\xff\xfe", b"c"])
    (tmp_path / "h.gguf").write_bytes(g.build())
    code, out, err = run(capsys, tmp_path / "h.gguf")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "red\nline" not in out
    assert facts(capsys, tmp_path / "h.gguf")["experts"]["names"][1] == "\ufffd\ufffd"


def test_closed_stdout_and_torch(folder: Path) -> None:
    """As in `sardine-inspect ... | true`; neither torch nor matplotlib is loaded without need."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sardine_gguf.inspect_cli", str(folder / "model.gguf")]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")
    code = (
        "import sys; from sardine_gguf.inspect_cli import main; main([sys.argv[1], '--check']);"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder / "model.gguf")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_file_of_8_gb_is_not_read(folder: Path, tmp_path: Path) -> None:
    """Header and means alone: a hole of the 14B shape is described within 200 MB of memory."""
    hidden, inner, n_layers, n = 5120, 16384, 40, 1_000_000
    specs: list[TensorSpec] = [spec("token_embd.weight", schema.Q4_K, hidden, 131072)]
    for i in range(n_layers):
        for m in schema.MATRICES:
            n_rows, n_cols = schema.matrix_shape(m, hidden, inner)
            specs.append(spec(f"blk.{i}.ffn_{m}.weight", schema.Q4_K, n_cols, n_rows))
            specs.append(spec(schema.delta(i, m, "row_ptr"), schema.I32, n_rows + 1))
            specs.append(spec(schema.delta(i, m, "col"), schema.I16, n))
            specs.append(spec(schema.delta(i, m, "val"), schema.Q8_0, n, 8))
            specs.append(spec(schema.delta(i, m, "scale"), schema.F32, 8))
        specs.append(spec(schema.router(i), schema.F32, hidden, 8))
        specs.append(spec(schema.delta_mean(i), schema.F32, 8))
    kv = {k: v for k, v in load_kv(folder / "model.gguf").items() if not k.startswith("mistral3.")}
    kv |= {
        "mistral3.block_count": ("u32", n_layers), "mistral3.embedding_length": ("u32", hidden),
        "mistral3.feed_forward_length": ("u32", inner), "mistral3.attention.head_count": ("u32", 32),
        schema.KEY_EXPERT_COUNT: ("u32", 8), schema.KEY_LAYERS: ("arr[u32]", list(range(n_layers))),
        schema.KEY_EXPERT_NAMES: ("arr[str]", list("abcdefgh")),
        schema.KEY_BLOCK_COLUMNS: ("u32", 65536),
    }  # fmt: skip
    header = pack_header(kv, specs, 32)
    path = tmp_path / "big.gguf"
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(padded(s.nbytes, 32) for s in specs))
    code = (
        "import sys; from sardine_gguf.inspect_cli import main; main(sys.argv[1:]);"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "120,000,000 (1.192%)" in result.stdout
    assert path.stat().st_size > 6e9
    assert int(result.stdout.splitlines()[-1]) < 200_000


def load_kv(path: Path) -> dict[str, Any]:
    """The metadata with its types."""
    from sardine_gguf._native import GgufFile

    return dict(GgufFile(str(path)).kv)


def test_gather_is_a_function_too(folder: Path) -> None:
    assert gather(PackedFile(folder / "base.gguf")).kind == "base"


def test_pieces_give_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and values are read some at a time: with any number of them the results are the same."""
    file = PackedFile(folder / "model.gguf")
    whole = check(file), expert_similarity(file), value_histogram(file)[1]
    monkeypatch.setattr(inspect_check, "CHUNK", 1000)
    monkeypatch.setattr(inspect_plot, "CHUNK_NUMBERS", 32 * 7)
    assert check(file) == whole[0]
    np.testing.assert_allclose(expert_similarity(file), whole[1], atol=1e-12)
    np.testing.assert_array_equal(value_histogram(file)[1], whole[2])
