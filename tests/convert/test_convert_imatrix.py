"""Importance matrices: both formats, llama-quantize's bytes and keys, and malformed files."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import read_sardine
from llama_quant import quantize as quantized_by_llama_cpp
from make_checkpoint import tiny_base
from sardine_gguf.convert import OptionError, convert, write_base
from sardine_gguf.convert.cli import main
from sardine_gguf.convert.imatrix import read_imatrix
from sardine_gguf.convert.schema import FILE_TYPES
from sardine_gguf.errors import FormatError

NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 layers, so that the rules about the first eighth apply to one."""
    path = tmp_path_factory.mktemp("models") / "m"
    return tiny_base(path, tokenizer=False, hidden=256, inner=512, heads=16, heads_kv=4, layers=8)


def sums_of(seed=0, without=()):
    """Sums of squares by tensor of `folder`, the columns of very different weight."""
    rng = np.random.default_rng(seed)
    return {
        f"blk.{i}.{name}.weight": (rng.standard_normal(512 if "down" in name else 256) ** 4).astype(
            np.float32
        )
        for i in range(8)
        for name in NAMES
        if f"{i}.{name}" not in without
    }


TAIL = struct.pack("<ii", 3, 9) + b"some text"


def legacy(path, sums, *, calls=7, tail=TAIL):
    """The older format, as llama-imatrix writes it."""
    out = struct.pack("<i", len(sums))
    for name, values in sums.items():
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack("<ii", calls, len(values)) + values.tobytes()
    path.write_bytes(out + tail)
    return path


def in_gguf(path, sums, *, count=96, leave_out=(), datasets=("a.txt", "b.txt")):
    """The newer format, through gguf's writer."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    if "datasets" not in leave_out:
        writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 32)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1))
        if "counts" not in leave_out:
            writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("outtype", ["q4_k_m", "iq4_xs", "q4_0", "q2_k", "q3_k_m", "q8_0"])
@pytest.mark.parametrize("form", ["legacy", "gguf"])
def test_as_llama_quantize(folder, tmp_path, outtype, form):
    sums = sums_of(without=("3.ffn_up",))
    make, divisor = (legacy, 7) if form == "legacy" else (in_gguf, 96)
    matrix = make(tmp_path / "imatrix.dat", sums)
    write_base(folder, tmp_path / "f32.gguf", "f32")
    report = write_base(folder, tmp_path / "ours.gguf", outtype, imatrix=matrix)
    # What llama-quantize's main reads from such a file and hands to the library.
    quantized_by_llama_cpp(
        tmp_path / "f32.gguf",
        tmp_path / "theirs.gguf",
        FILE_TYPES[outtype],
        imatrix={name: values / np.float32(divisor) for name, values in sums.items()},
        overrides={
            "quantize.imatrix.file": str(matrix)[:127],
            "quantize.imatrix.dataset": "some text" if form == "legacy" else "a.txt",
            "quantize.imatrix.entries_count": len(sums),
            "quantize.imatrix.chunks_count": 3 if form == "legacy" else 5,
        },
    )
    mine = read_sardine.tensors(tmp_path / "ours.gguf")
    other = read_sardine.tensors(tmp_path / "theirs.gguf")
    for key, tensor in mine.items():
        assert tensor.tensor_type == other[key].tensor_type, key
        np.testing.assert_array_equal(tensor.data, other[key].data, err_msg=key)
    keys = [read_sardine.keys(tmp_path / f"{n}.gguf") for n in ("ours", "theirs")]
    assert keys[0] == keys[1]
    assert any("names 55 of the model's 58 matrices" in w for w in report.warnings)


def test_very_low_bits(folder, tmp_path):
    """A type that cannot be made without one."""
    matrix = in_gguf(tmp_path / "i.gguf", sums_of())
    options = {"tensor_types": ["ffn_up=iq3_xxs"], "imatrix": matrix}
    write_base(folder, tmp_path / "o.gguf", "q8_0", **options)
    kinds = {k: t.tensor_type.name for k, t in read_sardine.tensors(tmp_path / "o.gguf").items()}
    assert kinds["blk.3.ffn_up.weight"] == "IQ3_XXS"
    options["imatrix"] = in_gguf(tmp_path / "j.gguf", sums_of(without=("3.ffn_up",)))
    with pytest.raises(OptionError, match=r"iq3_xxs of blk\.3\.ffn_up\.weight needs an importance"):
        write_base(folder, tmp_path / "p.gguf", "q8_0", **options)


def test_nothing_counted_means_one(tmp_path):
    path = in_gguf(tmp_path / "i.gguf", {"a": np.full(4, 3, np.float32)}, count=0)
    np.testing.assert_array_equal(read_imatrix(path).entries["a"], np.ones(4))


@pytest.mark.parametrize("tail", [b"", struct.pack("<i", 3), struct.pack("<ii", 3, 0)])
def test_legacy_tails(tmp_path, tail):
    found = read_imatrix(legacy(tmp_path / "i", {"a": np.ones(4, np.float32)}, calls=0, tail=tail))
    assert found.datasets == []
    assert "quantize.imatrix.dataset" not in found.metadata()
    assert ("quantize.imatrix.chunks_count" in found.metadata()) == bool(tail)


def test_a_matrix_of_another_model(folder, tmp_path):
    other = {name: values[:128] for name, values in sums_of().items()}
    with pytest.raises(FormatError, match="128 values, the model's tensor has 256 columns") as e:
        write_base(folder, tmp_path / "o", imatrix=legacy(tmp_path / "i", other))
    assert e.value.field == "blk.0.attn_q.weight"
    nothing = legacy(tmp_path / "j", {"blk.0.ssm.weight": np.ones(4, np.float32)})
    report = write_base(folder, tmp_path / "o", imatrix=nothing, dry_run=True)
    assert any("names no matrix of this model" in w for w in report.warnings)
    assert not (tmp_path / "o").exists()


def test_the_matrix_is_an_input(base, srde, tmp_path):
    matrix = legacy(tmp_path / "i", {"blk.0.attn_q.weight": np.ones(64, np.float32)})
    before = matrix.read_bytes()
    with pytest.raises(FormatError, match="is the input"):
        convert(base, srde, matrix, imatrix=matrix, force=True)
    assert matrix.read_bytes() == before


ONE = {"blk.0.attn_q.weight": np.ones(256, np.float32)}


def changed(at, data):
    """The legacy file with other bytes at one place."""

    def make(path):
        raw = bytearray(legacy(path, ONE).read_bytes())
        raw[at : at + len(data)] = data
        path.write_bytes(raw)

    return make


def number(value):
    """An int32."""
    return struct.pack("<i", value)


BAD = {
    "empty": lambda p: p.write_bytes(b""),
    "no entries": lambda p: p.write_bytes(number(0)),
    "entries -1": changed(0, number(-1)),
    "entries 2^31-1": changed(0, number(2**31 - 1)),
    "name of -1 bytes": changed(4, number(-1)),
    "name of 2^31-1 bytes": changed(4, number(2**31 - 1)),
    "calls -1": changed(27, number(-1)),
    "no values": changed(31, number(0)),
    "values -1": changed(31, number(-1)),
    "2^31-1 values": changed(31, number(2**31 - 1)),
    "NaN": changed(35, struct.pack("<f", float("nan"))),
    "infinity": changed(39, struct.pack("<f", float("inf"))),
    "negative": changed(43, struct.pack("<f", -1)),
    "1e38": changed(47, struct.pack("<f", 1e38)),
    "gguf with 1e15": lambda p: in_gguf(p, {k: v * 1e15 for k, v in ONE.items()}, count=1),
    "text": lambda p: p.write_text("blk.0.attn_q.weight 1 1 1 1\n" * 20),
    "bytes behind": lambda p: legacy(p, ONE, tail=struct.pack("<ii", 3, 1) + b"xy"),
    "chunks -1": lambda p: legacy(p, ONE, tail=struct.pack("<ii", -1, 0)),
    "data set of -1 bytes": lambda p: legacy(p, ONE, tail=struct.pack("<ii", 1, -1)),
    "half a number": lambda p: legacy(p, ONE, tail=b"\1"),
    "gguf without counts": lambda p: in_gguf(p, ONE, leave_out=("counts",)),
    "gguf without datasets": lambda p: in_gguf(p, ONE, leave_out=("datasets",)),
    "gguf with NaN counts": lambda p: in_gguf(p, ONE, count=np.nan),
    "gguf with negative counts": lambda p: in_gguf(p, ONE, count=-3),
    "gguf with no tensors": lambda p: in_gguf(p, {}),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed(base, tmp_path, case, capsys):
    path = tmp_path / "imatrix"
    BAD[case](path)
    out = tmp_path / "o.gguf"
    with pytest.raises(FormatError) as error:
        write_base(base, out, imatrix=path)
    assert str(path) in str(error.value)
    assert error.value.file == str(path)
    args = ["--base", str(base), "--base-only", "-o", str(out), "--imatrix", str(path)]
    assert main(args) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("kind", ["iq3_s", "iq2_xs", "q4_k", "iq4_xs"])
def test_the_largest_importance_is_only_a_scale(tmp_path, kind):
    """Weights that matter alike are weighed alike, however large the numbers that say so."""
    from sardine_gguf.convert import imatrix, native

    values = np.random.default_rng(3).standard_normal((2, 256)).astype(np.float32)
    ratios = (np.random.default_rng(4).random(256) ** 8).astype(np.float32)
    largest = 2.0 ** np.floor(np.log2(imatrix.MAX_IMPORTANCE))
    made = [
        np.asarray(
            native.encode_rows(
                values, "f32", kind, n_cols=256, importance=ratios * np.float32(scale), n_threads=1
            )
        ).tobytes()
        for scale in (1, largest)
    ]
    assert made[0] == made[1]


def test_every_truncation(tmp_path):
    whole = legacy(tmp_path / "i", {"a": np.ones(3, np.float32)}).read_bytes()
    complete = {len(whole), len(whole) - 13, len(whole) - 17}  # without the text, without the tail
    for n in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:n])
        if n in complete:
            read_imatrix(tmp_path / "cut")
            continue
        with pytest.raises(FormatError):
            read_imatrix(tmp_path / "cut")


def test_no_file(base, tmp_path):
    with pytest.raises(FileNotFoundError):
        write_base(base, tmp_path / "o", imatrix=tmp_path / "none")
    with pytest.raises(FormatError, match="a folder"):
        write_base(base, tmp_path / "o", imatrix=tmp_path)


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_types_without_importance_are_told(folder, tmp_path, outtype):
    matrix = legacy(tmp_path / "i", sums_of())
    report = write_base(folder, tmp_path / "o", outtype, imatrix=matrix, dry_run=True)
    told = any("makes use of importance" in w for w in report.warnings)
    assert told == (outtype != "q4_0")


@pytest.mark.parametrize("option", ["imatrix", "token_embedding_type", "output_tensor_type"])
def test_empty_options_of_a_gguf_base_are_refused(folder, tmp_path, option):
    write_base(folder, tmp_path / "b.gguf", "f16")
    with pytest.raises(OptionError, match=option.replace("_", " ")):
        write_base(tmp_path / "b.gguf", tmp_path / "o.gguf", **{option: ""})
