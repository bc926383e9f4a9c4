"""Inputs that must be refused: exit 3, one line on stderr, nothing written, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile

import gguf
import pytest
import torch
from crafted import Op, legacy, make_zip, rezip, safetensors, with_pickle
from make_checkpoint import srde_layers, tiny_base
from refusal import refuse
from sardine_gguf.convert import conversion, native, write_base
from sardine_gguf.convert.checkpoint import read_checkpoint
from sardine_gguf.convert.cli import main
from sardine_gguf.convert.safetensors_file import read_header
from sardine_gguf.errors import FormatError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One layer, no tokenizer: fast to convert."""
    return tiny_base(tmp_path_factory.mktemp("small") / "m", layers=2, tokenizer=False)


# Changes to the tensors of an otherwise good checkpoint.


def _set(key, value):
    def change(layers):
        layers["0"][key] = value(layers["0"].get(key)) if callable(value) else value

    return change


def _poke(key, at, value):
    def change(layers):
        tensor = layers["0"][key].clone()
        tensor.reshape(-1)[at] = value
        layers["0"][key] = tensor

    return change


def _drop(key):
    return lambda layers: layers["0"].pop(key)


def _rename(new):
    def change(layers):
        layers[new] = layers.pop("1")

    return change


INDEX, ATOMS, MIX = "mask_selector.indices", "vocabulary.atoms", "vocabulary.expert_atom_weights"
ROUTER = "router.gate.weight"
TOTAL = 3 * 64 * 96
NAN, INF = float("nan"), float("inf")

CHANGES = {
    **{f"layer {k!r}": (_rename(k), "layer|base has 2 layers") for k in (
        -1, "-1", "007", "1e3", "\u0663", "2", 2, "", "x", 2**64, str(2**64), "+1", "1 ",
        "module.", "module.00", True)},
    "no layers": (lambda layers: layers.clear(), "empty"),
    "layer twice": (lambda layers: layers.update({1: layers["1"]}), "occurs twice"),
    "layer is a list": (lambda layers: layers.update({"1": []}), "expected a dict"),
    **{f"no {k}": (_drop(k), k) for k in (
        INDEX, ATOMS, MIX, ROUTER, "experts.0.importance", "experts.3.importance",
        "experts.5.importance")},
    "unknown key": (_set("foo", torch.ones(1)), "foo"),
    "seventh expert": (_set("experts.6.importance", torch.ones(5)), "experts.6"),
    "key with and without prefix": (_set("module." + ROUTER, torch.ones(6, 64)), "occurs twice"),
    "value is a number": (_set(ROUTER, 3), "expected a tensor"),
    "float indices": (_set(INDEX, lambda t: t.double()), "integers"),
    "bool indices": (_set(INDEX, lambda t: t > 5), "integers"),
    "integer atoms": (_set(ATOMS, lambda t: t.long()), "expected f32"),
    "negative index": (_poke(INDEX, 0, -1), "-1"),
    "index beyond": (_poke(INDEX, 3, TOTAL), str(TOTAL)),
    "index twice": (lambda layers: _poke(INDEX, 0, layers["0"][INDEX][1])(layers), "twice"),
    "one index less": (_set(INDEX, lambda t: t[:-1].clone()), "indices"),
    "one index more": (_set(INDEX, lambda t: torch.cat([t, TOTAL - 1 - t[:1]])), "indices"),
    "indices of two dimensions": (_set(INDEX, lambda t: t[:, None].clone()), "indices"),
    "atoms NaN": (_poke(ATOMS, 7, NAN), "atoms"),
    "atoms Inf": (_poke(ATOMS, 7, INF), "atoms"),
    "mix NaN": (_poke(MIX, 1, NAN), "expert_atom_weights"),
    "mix Inf": (_poke(MIX, 1, INF), "expert_atom_weights"),
    "importance NaN": (_poke("experts.2.importance", 9, NAN), "experts.2.importance"),
    "importance [2]": (_set("experts.2.importance", torch.ones(2)), "experts.2.importance"),
    "router NaN": (_poke(ROUTER, 1, NAN), "router"),
    "router Inf": (_poke(ROUTER, 1, -INF), "router"),
    "router E+1": (_set(ROUTER, torch.ones(7, 64)), "router"),
    "router E-1": (_set(ROUTER, torch.ones(5, 64)), "router"),
    "router H+1": (_set(ROUTER, torch.ones(6, 65)), "router"),
    "router transposed": (_set(ROUTER, torch.ones(64, 6)), "router"),
    "atoms A+1": (_set(ATOMS, lambda t: torch.cat([t, t[:1]])), "atoms"),
    "atoms of one dimension": (_set(ATOMS, lambda t: t[0].clone()), "atoms"),
    "no atoms": (_set(MIX, torch.ones(6, 0)), "expert_atom_weights"),
    "mix of one dimension": (_set(MIX, torch.ones(6)), "expert_atom_weights"),
    "257 experts": (_set(MIX, torch.ones(257, 4)), "256"),
    "another copy": (_set("experts.1." + ATOMS, lambda t: t + 1), "experts.1"),
    "copy of another shape": (_set("experts.1." + MIX, torch.ones(2, 2)), "experts.1"),
    "logits beside indices": (_set("mask_selector.mask_logits", torch.ones(TOTAL)), "together"),
    "base_ffn shape": (_set("base_ffn.down_proj.weight", torch.ones(96, 64)), "base_ffn.down"),
    "base_ffn bias": (_set("base_ffn.down_proj.bias", torch.ones(64)), "base_ffn.down_proj.bias"),
    "complex": (_set(ATOMS, lambda t: t.to(torch.complex64)), "ComplexFloat"),
    "float8": (_set(ATOMS, lambda t: t.to(torch.float8_e4m3fn)), "_rebuild_tensor_v3|Untyped"),
    "quantized": (_set(ATOMS, lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8)),
                  "_rebuild_qtensor"),
    "sparse": (_set(INDEX, lambda t: torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.tensor([1.0]), (3,))), "_rebuild_sparse"),
    "another E in a layer": (lambda layers: [_drop("experts.5.importance")(layers),
                                             _drop("experts.5." + ATOMS)(layers),
                                             _drop("experts.5." + MIX)(layers),
                                             *(_set(f"experts.{e}." + MIX, torch.ones(5, 4))(layers)
                                               for e in range(5)),
                                             _set(MIX, torch.ones(5, 4))(layers)], "same in each"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse invariant")
@pytest.mark.parametrize("name", CHANGES)
def test_checkpoint_tensors(small, tmp_path, capsys, name):
    change, match = CHANGES[name]
    layers = srde_layers(small)
    change(layers)
    torch.save({"srde_layers": layers, "config": {"top_k": 2}}, tmp_path / "s.pt")
    line = refuse(small, tmp_path / "s.pt", tmp_path, capsys)
    assert any(m in line for m in match.split("|")), line


def test_all_missing_keys_are_named_at_once(small, tmp_path, capsys):
    layers = srde_layers(small)
    for key in (INDEX, ROUTER, "experts.4.importance"):
        del layers["1"][key]
    torch.save({"srde_layers": layers}, tmp_path / "s.pt")
    line = refuse(small, tmp_path / "s.pt", tmp_path, capsys)
    assert all(k in line for k in (INDEX, ROUTER, "experts.4.importance", "srde_layers.1"))


def test_a_missing_middle_layer_is_a_subset(small, tmp_path):
    torch.save({"srde_layers": srde_layers(small, layers=[0])}, tmp_path / "s.pt")
    assert [layer.index for layer in read_checkpoint(tmp_path / "s.pt", 3).layers] == [0]


@pytest.mark.parametrize("logit", [NAN])
def test_logits_with_nan(small, tmp_path, capsys, logit):
    layers = srde_layers(small, mask_logits=True)
    layers["0"]["mask_selector.mask_logits"][5] = logit
    torch.save({"srde_layers": layers}, tmp_path / "s.pt")
    assert "mask_logits" in refuse(small, tmp_path / "s.pt", tmp_path, capsys)


def test_value_beyond_f16(small, tmp_path, capsys, monkeypatch):
    """Refused before the base is quantized; other types hold it."""
    layers = srde_layers(small, duplicates=False)
    layers["1"][ATOMS] = torch.full_like(layers["1"][ATOMS], -200_000.0)
    torch.save({"srde_layers": layers, "config": {"top_k": 1}}, tmp_path / "s.pt")
    with monkeypatch.context() as patched:
        patched.delattr(conversion, "write_file")
        line = refuse(small, tmp_path / "s.pt", tmp_path, capsys, args=["--delta-type", "f16"])
    assert "srde_layers.1.experts." in line
    assert "65504" in line
    for delta_type in ("f32", "q8_0"):
        out = str(tmp_path / f"{delta_type}.gguf")
        assert main(["--base", str(small), "--srde", str(tmp_path / "s.pt"), "-q", "--verify",
                     "-o", out, "--delta-type", delta_type]) == 0  # fmt: skip
    # Large atoms alone are no error.
    for e in range(6):
        layers["1"][f"experts.{e}.importance"][:] = -10.0
    torch.save({"srde_layers": layers, "config": {"top_k": 1}}, tmp_path / "s.pt")
    assert main(["--base", str(small), "--srde", str(tmp_path / "s.pt"), "-q", "--verify",
                 "-o", str(tmp_path / "ok.gguf"), "--delta-type", "f16"]) == 0  # fmt: skip


@pytest.mark.parametrize("top_k", [0, 7, -1, 2.0, "2", True, None, [2], 2**70])
def test_top_k(small, tmp_path, capsys, top_k):
    torch.save({"srde_layers": srde_layers(small), "config": {"top_k": top_k}}, tmp_path / "s.pt")
    assert refuse(small, tmp_path / "s.pt", tmp_path, capsys)


TOPS = {
    "list": [1], "tensor": torch.ones(3), "no layers": {"model": {}}, "number": 5,
    "layers are a list": {"srde_layers": [1]},
    "config is a list": {"srde_layers": {}, "config": [1]},
}  # fmt: skip


@pytest.mark.parametrize("name", TOPS)
def test_other_checkpoints(small, tmp_path, capsys, name):
    torch.save(TOPS[name], tmp_path / "s.pt")
    refuse(small, tmp_path / "s.pt", tmp_path, capsys)


# Pickles by hand.


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_reduce_is_not_called(small, tmp_path, capsys):
    canary = tmp_path / "canary"
    torch.save({"srde_layers": {"0": Touch(canary)}}, tmp_path / "s.pt")
    assert "system" in refuse(small, tmp_path / "s.pt", tmp_path, capsys)


def test_config_object(small, tmp_path, capsys):
    import argparse

    torch.save(
        {"srde_layers": srde_layers(small), "config": argparse.Namespace(top_k=2)},
        tmp_path / "s.pt",
    )
    assert "argparse.Namespace" in refuse(small, tmp_path / "s.pt", tmp_path, capsys)


DATA = struct.pack("<4f", 1, 2, 3, 4)
TENSORS = {
    "stride 2^40": (4, 0, [2], [2**40]),
    "offset 2^40": (4, 2**40, [2], [1]),
    "offset": (4, 3, [2], [1]),
    "negative offset": (4, -1, [1], [1]),
    "negative size": (4, 0, [-1], [1]),
    "negative stride": (4, 3, [2], [-1]),
    "product beyond 64 bits": (4, 0, [2**40, 2**40], [0, 0]),
    "broadcast": (4, 0, [100], [0]),
    "stride count": (4, 0, [2, 2], [1]),
    "storage count": (5, 0, [2], [1]),
    "many dimensions": (4, 0, [1] * 9, [1] * 9),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_outside_of_its_storage(small, tmp_path, capsys, name):
    file = with_pickle(tmp_path / "s.pt", Op.checkpoint(Op.tensor(*TENSORS[name])), **{"0": DATA})
    assert "data" in refuse(small, file, tmp_path, capsys)


DEEP = b"]" * 10**6 + b"a" * (10**6 - 1)
PICKLES = {
    "empty": b"",
    "no stop": b"\x80\x02}",
    "set item on a list": b"\x80\x02]" + Op.text("a") + b"Ns.",
    "append to a dict": b"\x80\x02}Na.",
    "empty stack": b"\x80\x02R.",
    "two objects": b"\x80\x02NN.",
    "after stop": b"\x80\x02}.N",
    "text opcodes": b"I1\n.",
    "big memo index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "unknown memo": b"\x80\x02h\x05.",
    "deep": b"\x80\x02" + DEEP + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 10**6 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.",
    "unhashable key": b"\x80\x02}]Ns.",
    "key twice": b"\x80\x02}" + (Op.text("a") + b"Ns") * 2 + b".",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "long integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "integer of 100 bytes": b"\x80\x02\x8a\x64" + b"\x7f" * 100 + b".",
    "bytes": b"\x80\x03C\x01a.",
    "new object": b"\x80\x02" + Op.glob("collections", "OrderedDict") + b")\x81.",
    "build on a name": b"\x80\x02" + Op.glob("torch", "Size") + b"}b.",
    "call of a dtype": b"\x80\x02" + Op.glob("torch", "float32") + b")R.",
    "call with a list": b"\x80\x02" + Op.glob("torch", "Size") + b"]R.",
    "builtins": b"\x80\x02" + Op.glob("builtins", "eval") + Op.tuple(Op.text("1")) + b"R.",
    "dotted": b"\x80\x04" + Op.text("torch") + Op.text("serialization.load") + b"\x93.",
    "name of numbers": b"\x80\x04NN\x93.",
    "instance": b"(i__main__\nx\n.",
    "extension": b"\x80\x02\x82\x01.",
    "text persistent id": b"Pabc\n.",
    "odd persistent id": b"\x80\x02NQ.",
    "unknown storage": Op.checkpoint(Op.storage(4, key="9")),
    "storage of another type": Op.checkpoint(Op.storage(4, kind="float32")),
    "storage path": Op.checkpoint(Op.storage(4, key="../data.pkl")),
    "mark as a value": b"\x80\x02}" + Op.text("a") + b"(s.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "not a pickle": b"hello",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(small, tmp_path, capsys, name):
    file = with_pickle(tmp_path / "s.pt", PICKLES[name], **{"0": DATA})
    refuse(small, file, tmp_path, capsys)


def test_pickle_of_many_operations(small, tmp_path, capsys):
    file = with_pickle(tmp_path / "s.pt", b"\x80\x02" + b"N" * 300_000 + b".")
    assert "operations" in refuse(small, file, tmp_path, capsys)
    file = with_pickle(tmp_path / "s.pt", b"\x80\x02" + b"N" * (17 << 20) + b".")
    assert "at most" in refuse(small, file, tmp_path, capsys)


# The container.


def test_kinds_of_files(small, srde, tmp_path, capsys):
    good = {"srde_layers": srde_layers(small)}
    for file, words in {
        legacy(tmp_path / "legacy.pt", good): "before 1.6",
        _tar(tmp_path / "tar.pt"): "tar",
        _script(tmp_path / "script.pt"): "TorchScript",
        _bytes(tmp_path / "bare.pt", pickle.dumps({"a": 1})): "bare pickle",
        _bytes(tmp_path / "none.pt", b""): "not a zip",
        _bytes(tmp_path / "text.pt", b"version https://git-lfs.github.com/spec/v1\n"): "not a zip",
        make_zip(tmp_path / "other.pt", {"a/b": b"c"}): "data.pkl",
        make_zip(tmp_path / "deflated.pt", {"archive/data.pkl": b"\0" * 9**6},
                 zipfile.ZIP_DEFLATED): "compressed",
    }.items():  # fmt: skip
        assert words in refuse(small, file, tmp_path, capsys)


def _bytes(path, data):
    path.write_bytes(data)
    return path


def _tar(path):
    import tarfile

    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    return path


def _script(path):
    return make_zip(path, {"x/data.pkl": b"\x80\x02}.", "x/code/__torch__.py": b"",
                           "x/constants.pkl": b"\x80\x02)."})  # fmt: skip


ZIP_EDITS = {
    "byte order": lambda m: m.update(byteorder=b"big"),
    "member missing": lambda m: m.pop("data/0"),
    "member shorter": lambda m: m.update({"data/0": m["data/0"][:-4]}),
    "member longer": lambda m: m.update({"data/0": m["data/0"] + b"\0" * 4}),
    "traversal": lambda m: m.update({"../../canary": b"x"}),
    "no name": lambda m: m.update({"data//x": b"x"}),
    "dot": lambda m: m.update({"./data.pkl": b"x"}),
    "backslash": lambda m: m.update({"data\\x": b"x"}),
}


@pytest.mark.parametrize("name", ZIP_EDITS)
def test_archives(small, tmp_path, capsys, name):
    torch.save({"srde_layers": srde_layers(small)}, tmp_path / "good.pt")
    file = rezip(tmp_path / "good.pt", tmp_path / "s.pt", ZIP_EDITS[name])
    refuse(small, file, tmp_path, capsys)


def test_absolute_and_repeated_member_names(small, tmp_path, capsys):
    for i, names in enumerate((["a/data.pkl", "/etc/x"], ["a/data.pkl", "b/data.pkl"])):
        file = make_zip(tmp_path / f"{i}.pt", dict.fromkeys(names, b"\x80\x02}."))
        refuse(small, file, tmp_path, capsys)
    with pytest.warns(UserWarning, match="Duplicate"):
        _twice(tmp_path / "twice.pt")
    assert "twice" in refuse(small, tmp_path / "twice.pt", tmp_path, capsys)


def _twice(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data.pkl", b"\x80\x02}.")


def test_truncated_checkpoint(small, tmp_path, capsys):
    torch.save({"srde_layers": srde_layers(small, layers=[0])}, tmp_path / "good.pt")
    data = (tmp_path / "good.pt").read_bytes()
    for i in range(64):
        file = _bytes(tmp_path / "cut.pt", data[: len(data) * i // 64])
        refuse(small, file, tmp_path, capsys)
    for i in range(1, 40):
        refuse(small, _bytes(tmp_path / "cut.pt", data[:-i]), tmp_path, capsys)


def test_flipped_bytes_of_tensors(small, tmp_path, capsys):
    torch.save({"srde_layers": srde_layers(small, layers=[0])}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        members = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size]
    data = bytearray((tmp_path / "good.pt").read_bytes())
    for member in members:
        raw = (tmp_path / "good.pt").read_bytes()
        start = (
            member.header_offset
            + 30
            + sum(struct.unpack_from("<HH", raw, member.header_offset + 26))
        )
        at = start + member.file_size // 2
        data[at] ^= 1
        line = refuse(small, _bytes(tmp_path / "bad.pt", data), tmp_path, capsys)
        assert "checksum" in line or "indices" in line
        data[at] ^= 1


def test_folders(small, srde, tmp_path, capsys):
    folder = tmp_path / "srde"
    folder.mkdir()
    assert "none of them" in refuse(small, folder, tmp_path, capsys)
    for name in ("srde_weights.pt", "weights.pt"):
        torch.save({"srde_layers": srde_layers(small), "config": {"top_k": 2}}, folder / name)
    line = refuse(small, folder, tmp_path, capsys)
    assert "srde_weights.pt" in line
    assert "weights.pt" in line
    (folder / "weights.pt").unlink()
    args = ["--base", str(small), "--srde", str(folder), "-o", str(tmp_path / "o.gguf"), "-q"]
    assert main(args) == 0


def test_pipes_are_not_opened(small, srde, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refuse(small, tmp_path / "pipe", tmp_path, capsys)
    assert "pipe" in refuse(tmp_path / "pipe", srde, tmp_path, capsys)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md",
                 "generation_config.json"):  # fmt: skip
        folder = tmp_path / name
        shutil.copytree(small, folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        assert "pipe" in refuse(folder, srde, tmp_path, capsys)


# safetensors and config.json


def _f32(*span, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


HEADERS = {
    "gap": {"a": _f32(0, 4), "b": _f32(8, 12)},
    "overlap": {"a": _f32(0, 4), "b": _f32(2, 6)},
    "reversed": {"a": _f32(4, 0)},
    "beyond": {"a": _f32(0, 4), "b": _f32(4, 12, shape=(2,))},
    "bytes left": {"a": _f32(0, 4)},
    "start": {"a": _f32(4, 8)},
    "size": {"a": _f32(0, 8)},
    "negative": {"a": _f32(-4, 0)},
    "float": {"a": _f32(0.0, 4.0)},
    "true": {"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}},
    "huge": {"a": _f32(0, 8, shape=(2**62, 2**62))},
    "dtype": {"a": _f32(0, 8, dtype="F33")},
    "keys": {"a": {"dtype": "F32", "shape": [2]}},
    "list": [1],
    "not json": b"{]",
    "twice": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
             b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "not utf-8": b'{"\xff":1}',
    "nan": b'{"a":NaN}',
    "deep": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "long number": b'{"a":' + b"1" * 5000 + b"}",
    **{f"metadata {v!r}": {"__metadata__": v, "a": _f32(0, 8, shape=(2,))} for v in (
        [], ["a"], "a", 1, {"a": 1}, {"a": None}, {"a": {}})},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers(small, srde, tmp_path, capsys, name):
    safetensors(tmp_path / "x.safetensors", HEADERS[name], bytes(8))
    with pytest.raises(FormatError):
        read_header(tmp_path / "x.safetensors")
    folder = tmp_path / "m"
    shutil.copytree(small, folder)
    shutil.copy(tmp_path / "x.safetensors", folder / "model.safetensors")
    refuse(folder, srde, tmp_path, capsys)


@pytest.mark.parametrize("length", [0, 1, 2**63, 10**8 + 1, 30, 2**64 - 1])
def test_safetensors_header_lengths(tmp_path, length):
    safetensors(tmp_path / "x.safetensors", {"a": _f32(0, 8, shape=(2,))}, bytes(8), length)
    with pytest.raises(FormatError):
        read_header(tmp_path / "x.safetensors")


BOMBS = {
    "lists": b'{"a":[' + b"[]," * (1 << 22) + b"[]]}",
    "objects": b'{"a":[' + b"{}," * (1 << 22) + b"{}]}",
    "keys": b"{" + b",".join(b'"%x":0' % i for i in range(1 << 20)) + b"}",
    "nested": b'{"a":' * (1 << 21),
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_of_many_values(small, srde, tmp_path, capsys, name):
    """A short text of many values would take 25 times its size in memory."""
    folder = tmp_path / "m"
    shutil.copytree(small, folder)
    (folder / "tokenizer.json").write_bytes(BOMBS[name])
    header = safetensors(tmp_path / "x.safetensors", BOMBS[name], b"")
    for inputs in ((folder, srde), (small, header)):
        line = refuse(*inputs, tmp_path, capsys)
        assert "too many values" in line


def test_safetensors_header_of_too_many_tensors(small, tmp_path, capsys):
    entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    header = dict.fromkeys(map(str, range(100_001)), entry)
    file = safetensors(tmp_path / "x.safetensors", header, bytes(4))
    assert "at most 100000" in refuse(small, file, tmp_path, capsys)


def test_safetensors_truncated(tmp_path):
    file = safetensors(tmp_path / "x.safetensors", {"a": _f32(0, 8, shape=(2,))}, bytes(8))
    data = file.read_bytes()
    assert list(read_header(file)) == ["a"]
    for i in range(len(data)):
        with pytest.raises(FormatError):
            read_header(_bytes(file, data[:i]))
    with pytest.raises(FormatError):
        read_header(_bytes(file, data + b"\0"))


def test_index_leaves_the_folder(srde, tmp_path, capsys):
    folder = tiny_base(tmp_path / "m", layers=1, tokenizer=False, max_shard_size="60KB")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    name, shard = next(iter(good["weight_map"].items()))
    shutil.copy(folder / shard, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    for target in ("../outside.safetensors", "/etc/passwd", "link.safetensors", "", ".", "..",
                   "pipe.safetensors", "missing.safetensors", "a\\b", "x\0y", 5,
                   str(tmp_path / "outside.safetensors")):  # fmt: skip
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], name: target}}))
        refuse(folder, srde, tmp_path, capsys)
    for broken in (
        {},
        {"weight_map": {}},
        {"weight_map": [1]},
        {"weight_map": {**good["weight_map"], "extra.weight": shard}},
        {"weight_map": {k: v for k, v in good["weight_map"].items() if k != name}},
    ):
        index.write_text(json.dumps(broken))
        refuse(folder, srde, tmp_path, capsys)


def test_links_of_the_hub_cache_are_followed(small, tmp_path):
    """snapshots/REVISION/NAME -> ../../blobs/HASH is how models are downloaded."""
    home = tmp_path / "models--x--y"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for file in small.iterdir():
        shutil.copy(file, home / "blobs" / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    write_base(snapshot, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").exists()


CONFIGS = {
    **{f"hidden_size {v!r}": {"hidden_size": v} for v in (0, -1, 2**31, "64", 64.0, True, 65, [])},
    "layers": {"num_hidden_layers": 10**9},
    "fewer layers": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 4},
    "kv heads": {"num_key_value_heads": 3},
    "heads": {"num_attention_heads": 8},
    "head_dim": {"head_dim": 15},
    "vocab": {"vocab_size": 319},
    "eps": {"rms_norm_eps": -1},
    "context": {"max_position_embeddings": 0},
    "model type": {"model_type": "mistral"},
    "no model type": {"model_type": None},
    "window": {"sliding_window": 4096},
    "bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "act": {"hidden_act": "gelu"},
    **{
        f"quantized {v!r:.40}": {"quantization_config": v}
        for v in (
            {"quant_method": "gptq", "bits": 4},
            {"quant_method": None},
            {},
            [1],
            {"quant_method": "fp8", "weight_block_size": [0, 128]},
            {"quant_method": "fp8", "weight_block_size": [128]},
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        )
    },
    "layer types": {"layer_types": ["sliding_attention", "full_attention"]},
    "text config": {"model_type": "mistral3", "text_config": 5},
    "other text": {"model_type": "mistral3", "text_config": {"model_type": "mistral"}},
    "tied although stored": {"tie_word_embeddings": True},
    "rope": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}},
    "ids": {"bos_token_id": 2**31},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(base, srde, tmp_path, capsys, name):
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    if name == "ids":
        edit = json.loads((folder / "tokenizer_config.json").read_text())
        edit.pop("bos_token")
        (folder / "tokenizer_config.json").write_text(json.dumps(edit))
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["post_processor"] = None
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **CONFIGS[name]}))
    refuse(folder, srde, tmp_path, capsys)


def test_config_files(base, srde, tmp_path, capsys):
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    for text in ("", "{", "[]", "null", '{"a":1,"a":2}', "\xff", "[" * 100_000):
        (folder / "config.json").write_text(text, "latin-1")
        refuse(folder, srde, tmp_path, capsys)
    (folder / "config.json").unlink()
    assert "config.json" in refuse(folder, srde, tmp_path, capsys, code=4)


CARDS = {
    "alias bomb": "---\na: &a [x, x]\nb: &b [*a, *a]\nbase_model: [*b, *b]\n---\n",
    "not yaml": "---\na: [\n---\n",
    "deep": "---\na: " + "[" * 5000 + "\n---\n",
    "numbers": "---\nlicense: [1, 2]\n---\n",
    "too large": "x" * (5 << 20),
}


@pytest.mark.parametrize("name", CARDS)
def test_model_cards(small, srde, tmp_path, capsys, name):
    folder = tmp_path / "m"
    shutil.copytree(small, folder)
    (folder / "README.md").write_text(CARDS[name])
    refuse(folder, srde, tmp_path, capsys)


def test_weights_that_are_not_numbers(srde, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tiny_base(tmp_path / "m", inner=100)
    good = load_file(folder / "model.safetensors")
    for value, outtype in ((NAN, "f32"), (INF, "q4_k_m"), (1e5, "f16"), (-1e5, "f16")):
        tensors = {k: v.clone() for k, v in good.items()}
        tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = value
        save_file(tensors, folder / "model.safetensors")
        line = refuse(folder, srde, tmp_path, capsys, args=["--outtype", outtype])
        assert "layers.1.mlp.down_proj" in line
    for name, tensor in {"model.layers.0.self_attn.q_proj.bias": torch.ones(64),
                         "extra.weight": torch.ones(2)}.items():  # fmt: skip
        save_file({**good, name: tensor}, folder / "model.safetensors")
        assert name in refuse(folder, srde, tmp_path, capsys)
    name = "model.layers.0.mlp.up_proj.weight"
    for tensor in (
        good[name].to(torch.float8_e4m3fn),
        good[name].long(),
        good[name][:, :63].clone(),
    ):
        save_file({**good, name: tensor}, folder / "model.safetensors")
        assert name in refuse(folder, srde, tmp_path, capsys)
    del good[name]
    save_file(good, folder / "model.safetensors")
    assert name[6:] in refuse(folder, srde, tmp_path, capsys)


def _vocab(change):
    def edit(data):
        change(data["model"]["vocab"])

    return edit


def _added(entry):
    return lambda data: data["added_tokens"].append(entry)


TOKENIZERS = {
    "id 2^31": _vocab(lambda v: v.update(zzz=2**31)),
    "id vocab_size": _vocab(lambda v: v.update(zzz=320)),
    "negative id": _vocab(lambda v: v.update(zzz=-1)),
    "id twice": _vocab(lambda v: v.update(zzz=50)),
    "text id": _vocab(lambda v: v.update(zzz="50")),
    "bool id": _vocab(lambda v: v.update(zzz=True)),
    "added id beyond": _added({"id": 320, "content": "x"}),
    "added id taken": _added({"id": 50, "content": "xyz"}),
    "added text twice": _added({"id": 319, "content": "<s>", "special": True}),
    "added without content": _added({"id": 5}),
    "added is a number": _added(7),
    "lone surrogate": _vocab(lambda v: v.update({"\ud800": v.pop("zz", 319)})),
    "empty vocab": _vocab(lambda v: v.clear()),
    "vocab list": lambda d: d["model"].update(vocab=[]),
    "unigram": lambda d: d["model"].update(type="Unigram"),
    "byte fallback": lambda d: d["model"].update(byte_fallback=True),
    "not byte level": lambda d: d.update(pre_tokenizer=None, decoder=None),
    "merges": lambda d: d["model"].update(merges=[5]),
    "merge of three": lambda d: d["model"].update(merges=["a b c"]),
    "no model": lambda d: d.pop("model"),
    "model is a list": lambda d: d.update(model=[]),
    "post processor": lambda d: d.update(post_processor=[1]),
    "post number": lambda d: d.update(post_processor=5),
    "processors": lambda d: d.update(post_processor={"processors": {"a": 1}}),
    "processor number": lambda d: d.update(post_processor={"processors": [1]}),
    "template single": lambda d: d["post_processor"].update(single=5),
    "template pieces": lambda d: d["post_processor"].update(pair=[1, 2]),
    "merge of lists": lambda d: d["model"].update(merges=[["a", ["b"]]]),
    "merge of nothing": lambda d: d["model"].update(merges=["a "]),
    "merges object": lambda d: d["model"].update(merges={"a": "b"}),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(base, srde, tmp_path, capsys, name):
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    TOKENIZERS[name](data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    refuse(folder, srde, tmp_path, capsys)


@pytest.mark.parametrize("half", [0xDC80, 0xD800])
def test_texts_that_are_not_unicode(base, srde, tmp_path, capsys, half):
    """JSON can name half of a character; it is no byte of a GGUF file that is copied."""
    folder = tmp_path / "m"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": chr(half)})
    )
    assert "tokenizer.chat_template" in refuse(folder, srde, tmp_path, capsys)


def test_folder_whose_name_is_not_unicode(small, tmp_path):
    folder = tmp_path / os.fsdecode(b"Name-\xff")
    shutil.copytree(small, folder)
    write_base(folder, tmp_path / "o.gguf")
    name = native.GgufFile(str(tmp_path / "o.gguf")).kv["general.name"][1]
    assert name.isprintable()


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "vocab.json"])
def test_tokenizer_kinds_that_are_not_read(small, srde, tmp_path, capsys, name):
    folder = tmp_path / "m"
    shutil.copytree(small, folder)
    (folder / name).write_text("{}")
    assert "not supported" in refuse(folder, srde, tmp_path, capsys)


# A GGUF base


def gguf_base(path, arch="llama", **changes):
    writer = gguf.GGUFWriter(path, arch)
    keys = {"embedding_length": 64, "feed_forward_length": 96, "block_count": 2, **changes}
    for key, value in keys.items():
        name = key if "." in key else f"{arch}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    import numpy as np

    for i in range(2):
        for m in ("gate", "up", "down"):
            shape = (64, 96) if m == "down" else (96, 64)
            writer.add_tensor(f"blk.{i}.ffn_{m}.weight", np.ones(shape, np.float32))
        for extra in changes.get("_extra", ()):
            writer.add_tensor(f"blk.{i}.{extra}", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_CHANGES = {
    "arch": ({"arch": "qwen3"}, "qwen3"),
    "experts inside": ({"sardine.version": 1}, "already"),
    "split": ({"split.count": 2}, "split"),
    "mixture": ({"expert_count": 8}, "mixture-of-experts"),
    "no hidden": ({"embedding_length": None}, "embedding_length"),
    "text hidden": ({"embedding_length": "64"}, "embedding_length"),
    "list of inner": ({"feed_forward_length": [96, 96]}, "feed_forward_length"),
    "another hidden": ({"embedding_length": 32}, "expected|router"),
    "another inner": ({"feed_forward_length": 64}, "expected"),
    "fewer layers": ({"block_count": 1}, "base has 1 layers"),
    "no layers": ({"block_count": 0}, "block_count"),
}


@pytest.mark.parametrize("name", GGUF_CHANGES)
def test_gguf_bases(small, tmp_path, capsys, name):
    changes, words = GGUF_CHANGES[name]
    file = gguf_base(tmp_path / "base.gguf", **changes)
    torch.save({"srde_layers": srde_layers(small)}, tmp_path / "s.pt")
    line = refuse(file, tmp_path / "s.pt", tmp_path, capsys)
    assert any(w in line for w in words.split("|")), line


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A GGUF base that runs, of a folder with two layers."""
    folder = tiny_base(tmp_path_factory.mktemp("whole") / "m", layers=2)
    write_base(folder, folder.parent / "m.gguf", "f16")
    return folder.parent / "m.gguf"


def remade(source, path, *, keys=None, without=(), extra=None):
    """A GGUF file with other keys {name: (type, value), None to leave it out} and tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        entry = (keys or {}).get(key, (kind, field.contents()))
        if entry is not None:
            writer.add_key_value(key, entry[1], entry[0], sub)
    for tensor in reader.tensors:
        if tensor.name not in without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS = gguf.GGUFValueType
UNRUNNABLE = {
    "attn_k": {"without": ("blk.0.attn_k.weight",)},
    "output_norm": {"without": ("output_norm.weight",)},
    "hello": {"extra": {"hello": torch.ones(64).numpy()}},
    "block_count": {"keys": {"mistral3.block_count": (KINDS.INT32, 2)}},
    "embedding_length": {"keys": {"mistral3.embedding_length": (KINDS.UINT64, 64)}},
    "head_count": {"keys": {"mistral3.attention.head_count": (KINDS.UINT32, 3)}},
    "context_length": {"keys": {"mistral3.context_length": None}},
}


@pytest.mark.parametrize("words", UNRUNNABLE)
@pytest.mark.parametrize("kind", ["merged", "adapter", "base"])
def test_gguf_bases_that_the_runtime_refuses(whole, small, tmp_path, capsys, words, kind):
    file = remade(whole, tmp_path / "base.gguf", **UNRUNNABLE[words])
    torch.save({"srde_layers": srde_layers(small), "config": {"top_k": 2}}, tmp_path / "s.pt")
    if kind == "base":
        with pytest.raises(FormatError, match=words):
            write_base(file, tmp_path / "o.gguf")
        assert not (tmp_path / "o.gguf").exists()
        return
    args = ["--adapter"] if kind == "adapter" else []
    line = refuse(file, tmp_path / "s.pt", tmp_path, capsys, args=args)
    assert words in line
    assert str(file) in line


def test_gguf_base_that_runs(whole, small, tmp_path):
    file = remade(whole, tmp_path / "base.gguf")
    write_base(file, tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize("extra", ["ffn_gate_inp.weight", "ffn_up_delta.col", "ffn_delta.mean"])
def test_gguf_base_with_tensors_of_experts(small, tmp_path, capsys, extra):
    file = gguf_base(tmp_path / "base.gguf", _extra=[extra])
    torch.save({"srde_layers": srde_layers(small)}, tmp_path / "s.pt")
    assert "already" in refuse(file, tmp_path / "s.pt", tmp_path, capsys)


def test_gguf_base_malformed(small, srde, tmp_path, capsys):
    data = gguf_base(tmp_path / "good.gguf").read_bytes()
    bomb = b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(25)
    offsets = data.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight")
    for bad in (b"", b"GGUF", bomb, data[:200], data[:-1], data + b"\0", offsets,
                b"FUGG" + data[4:]):  # fmt: skip
        refuse(_bytes(tmp_path / "bad.gguf", bad), srde, tmp_path, capsys)
