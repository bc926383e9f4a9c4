"""Split GGUF bases, and bases of every tensor type that ggml multiplies with."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import read_sardine
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import Sardine
from sardine_gguf._native import GgufFile
from sardine_gguf.convert import convert, write_base
from sardine_gguf.convert.cli import main
from sardine_gguf.convert.gguf_file import pack_header, spec
from sardine_gguf.convert.schema import F32, TYPES


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A base in one file, and the extended file made of it."""
    folder = tmp_path_factory.mktemp("whole")
    write_base(base, folder / "base.gguf", "q8_0")
    return folder / "base.gguf"


@pytest.fixture(scope="module")
def expected(whole, srde):
    convert(whole, srde, whole.with_name("o.gguf"))
    return whole.with_name("o.gguf").read_bytes()


def split(source, folder, count=3, change=lambda i, kv, tensors: None, name="m"):
    """Writes the parts as llama-gguf-split does: all metadata in the first, split.* in each."""
    file = GgufFile(str(source))
    data = source.read_bytes()
    tensors = [(t.name, t.type, tuple(t.shape), data[t.offset : t.offset + t.nbytes])
               for t in file.tensors]  # fmt: skip
    per_part = -(-len(tensors) // count)
    paths = []
    for i in range(count):
        kv = dict(file.kv) if i == 0 else {}
        kv |= {"split.no": ("u16", i), "split.count": ("u16", count),
               "split.tensors.count": ("i32", len(tensors))}  # fmt: skip
        mine = tensors[i * per_part : (i + 1) * per_part]
        change(i, kv, mine)
        paths.append(folder / f"{name}-{i + 1:05}-of-{count:05}.gguf")
        write(paths[-1], kv, mine)
    return paths


def write(path, kv, tensors):
    from sardine_gguf.convert.gguf_file import TensorSpec

    specs = [TensorSpec(name, kind, ne, len(data)) for name, kind, ne, data in tensors]
    body = b"".join(data + bytes(-len(data) % 32) for *_, data in tensors)
    path.write_bytes(pack_header(kv, specs, 32) + body)


@pytest.mark.parametrize("named", [0, 1, 2])
def test_parts_give_what_the_whole_gives(whole, srde, expected, tmp_path, named):
    paths = split(whole, tmp_path)
    convert(paths[named], srde, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == expected


@pytest.mark.parametrize("limit", [{"split_max_tensors": 7}, {"split_max_size": 60_000}])
def test_parts_written_by_gguf(whole, srde, expected, tmp_path, limit):
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mistral3", **limit)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            writer.add_key_value(
                key, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(tmp_path / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 2
    convert(parts[0], srde, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == expected


def test_one_part_is_a_whole(whole, srde, expected, tmp_path):
    paths = split(whole, tmp_path, count=1)
    convert(paths[0].rename(tmp_path / "any.gguf"), srde, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == expected


def test_a_part_without_tensors(whole, srde, expected, tmp_path):
    """--no-tensor-first-split puts the metadata alone into the first part."""
    held = []

    def change(i, kv, tensors):
        if i == 0:
            held.extend(tensors)
            tensors.clear()
        elif i == 1:
            tensors[:0] = held

    paths = split(whole, tmp_path, change=change)
    convert(paths[0], srde, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == expected


def at(part, edit):
    return lambda i, kv, tensors: edit(kv, tensors) if i == part else None


CHANGES = {
    "another number": (at(1, lambda kv, t: kv.update({"split.no": ("u16", 2)})), "split.no"),
    "another count": (at(1, lambda kv, t: kv.update({"split.count": ("u16", 4)})), "split.count"),
    "no count in a part": (at(2, lambda kv, t: kv.pop("split.count")), "split.count"),
    "no number": (at(1, lambda kv, t: kv.pop("split.no")), "split.no"),
    "count is a text": (at(2, lambda kv, t: kv.update({"split.count": ("str", "3")})),
                        "split.count"),
    "first of another count": (at(0, lambda kv, t: kv.update({"split.count": ("u16", 4)})),
                               "split.count"),
    "count beyond names": (at(0, lambda kv, t: kv.update({"split.count": ("u64", 2**63)})),
                           "split.count"),
    "first is a text": (at(0, lambda kv, t: kv.update({"split.count": ("str", "3")})),
                        "split.count"),
    "tensor twice": (at(2, lambda kv, t: t.append(("token_embd.weight", 0, (32,), bytes(128)))),
                     "token_embd.weight"),
    "tensor missing": (at(1, lambda kv, t: t.pop()), "split.tensors.count"),
    "no number of tensors": (at(0, lambda kv, t: kv.pop("split.tensors.count")),
                             "split.tensors.count"),
    "another number of tensors": (
        at(1, lambda kv, t: kv.update({"split.tensors.count": ("i32", 5)})),
        "split.tensors.count"),
    "another model": (
        at(1, lambda kv, t: kv.update({"mistral3.block_count": ("u32", 9)})), "block_count"),
    "another type": (
        at(1, lambda kv, t: kv.update({"mistral3.block_count": ("u64", 3)})), "block_count"),
    "more metadata": (at(2, lambda kv, t: kv.update({"general.x": ("str", "y")})), "general.x"),
    "experts in a part": (
        at(2, lambda kv, t: t.append(("blk.0.ffn_gate_inp.weight", 0, (32,), bytes(128)))),
        "already|split.tensors"),
}  # fmt: skip


def refuse(path, srde, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    assert main(["--base", str(path), "--srde", str(srde), "-o", str(out / "o.gguf")]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert list(out.iterdir()) == []
    return lines[0]


@pytest.mark.parametrize("name", CHANGES)
def test_parts_that_do_not_fit(whole, srde, tmp_path, capsys, name):
    change, words = CHANGES[name]
    paths = split(whole, tmp_path, change=change)
    line = refuse(paths[0], srde, tmp_path, capsys)
    assert any(w in line for w in words.split("|")), line


def test_repeated_metadata_may_be_equal(whole, srde, expected, tmp_path):
    kv = dict(GgufFile(str(whole)).kv)
    paths = split(whole, tmp_path, change=at(1, lambda own, t: own.update(kv)))
    convert(paths[1], srde, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == expected


def test_files_of_parts(whole, srde, tmp_path, capsys):
    paths = split(whole, tmp_path)
    moved = paths[1].rename(tmp_path / "away.gguf")
    assert "00002-of-00003.gguf: file: is missing" in refuse(paths[0], srde, tmp_path, capsys)
    assert "00001-of-00003" in refuse(moved, srde, tmp_path, capsys)
    import os

    os.mkfifo(paths[1])
    assert "pipe" in refuse(paths[0], srde, tmp_path, capsys)
    paths[1].unlink()
    paths[1].write_bytes(moved.read_bytes()[:-1])
    assert "truncated" in refuse(paths[0], srde, tmp_path, capsys)
    paths[1].write_bytes(paths[0].read_bytes())
    assert "split.no" in refuse(paths[0], srde, tmp_path, capsys)


def test_output_may_not_be_a_part(whole, srde, tmp_path, capsys):
    paths = split(whole, tmp_path)
    args = ["--base", str(paths[0]), "--srde", str(srde), "-o", str(paths[2]), "--force"]
    before = paths[2].read_bytes()
    assert main(args) == 3
    assert paths[2].read_bytes() == before


# Types. Q8_1 and Q8_K hold activations; no weight has them.
NO_WEIGHTS = {"Q8_1", "Q8_K", "F64", "I8", "I16", "I32", "I64"}
WEIGHTS = [t for t in gguf.GGMLQuantizationType if t.name not in NO_WEIGHTS]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Rows of 256, whole blocks of every type."""
    folder = tmp_path_factory.mktemp("wide")
    base = tiny_base(folder / "m", hidden=256, inner=512, layers=1, heads=4, head_dim=64)
    write_base(base, folder / "base.gguf", "f32")
    srde_checkpoint(folder / "s.pt", base)
    return folder


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda k: k.name)
def test_a_base_of_any_type_is_copied_and_runs(wide, tmp_path, kind):
    """The FFN's matrices have the type, and blocks of zeros: the FFN adds the deltas alone."""
    file = GgufFile(str(wide / "base.gguf"))
    data = (wide / "base.gguf").read_bytes()
    block, size = gguf.GGML_QUANT_SIZES[kind]
    tensors = []
    for t in file.tensors:
        raw, type_id = data[t.offset : t.offset + t.nbytes], t.type
        if ".ffn_" in t.name and "norm" not in t.name:
            raw, type_id = bytes(int(np.prod(t.shape)) // block * size), int(kind)
        tensors.append((t.name, type_id, tuple(t.shape), raw))
    write(tmp_path / "base.gguf", dict(file.kv), tensors)
    convert(tmp_path / "base.gguf", wide / "s.pt", tmp_path / "o.gguf")
    held = read_sardine.tensors(tmp_path / "o.gguf")
    assert held["blk.0.ffn_up.weight"].tensor_type == kind
    with Sardine(tmp_path / "o.gguf", n_threads=1, n_ctx=32) as model:
        assert np.isfinite(model.eval([1, 20, 30])).all()


def test_the_packer_agrees_with_gguf_on_sizes():
    for name, kind in TYPES.items():
        ours = spec("x", kind, 256).nbytes
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind.id)]
        assert ours == 256 // block * size, name
    assert spec("x", F32, 3, 5).nbytes == 60
