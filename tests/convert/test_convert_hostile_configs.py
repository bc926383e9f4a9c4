"""Configs beside and inside a checkpoint that are made to be long to read or to print."""

from __future__ import annotations

import struct

import pytest
import torch
from crafted import Op, rezip
from make_checkpoint import srde_layers, tiny_base
from refusal import refuse
from safetensors.torch import save_file
from sardine_gguf.convert import convert


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One layer, no tokenizer: fast to convert."""
    return tiny_base(tmp_path_factory.mktemp("small") / "m", layers=1, tokenizer=False)


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    """A checkpoint without a config."""
    path = tmp_path_factory.mktemp("plain") / "plain.pt"
    torch.save({"srde_layers": srde_layers(small)}, path)
    return path


def _put(index):
    return b"r" + struct.pack("<I", index)


def _get(index):
    return b"j" + struct.pack("<I", index)


def _doubled(times):
    """A tuple of two of a tuple of two ...: 2^times numbers, if it is taken for a tree."""
    out = Op.number(1) + b"\x85" + _put(10**6)
    for i in range(times):
        out += _get(10**6 + i) + b"\x86" + _put(10**6 + i + 1)
    return out


ITSELF = b"]" + _put(10**6) + _get(10**6) + b"a"


def _with_config(plain, target, **entries):
    """The checkpoint with a config of these entries, in opcodes that leave one value each."""
    config = b"}" + b"".join(Op.text(key) + value + b"s" for key, value in entries.items())

    def edit(members):
        data = members["data.pkl"]
        assert data.endswith(b".")
        members["data.pkl"] = data[:-1] + Op.text("config") + config + b"s."

    return rezip(plain, target, edit)


@pytest.mark.parametrize("value", [_doubled(60), ITSELF], ids=["doubled", "itself"])
def test_values_that_are_no_trees(small, plain, tmp_path, capsys, value):
    file = _with_config(plain, tmp_path / "s.pt", top_k=value)
    assert "top_k" in refuse(small, file, tmp_path, capsys)
    file = _with_config(plain, tmp_path / "s.pt", top_k=Op.number(2), srde_layers=value)
    report = convert(small, file, tmp_path / "o.gguf", dry_run=True)
    assert [w for w in report.warnings if "srde_layers lists" in w and "a list of " in w]


def _hub(small, folder, text):
    folder.mkdir()
    layers = {
        f"srde_layers.{i}.{name}": tensor.contiguous()
        for i, layer in srde_layers(small, duplicates=False).items()
        for name, tensor in layer.items()
    }
    save_file(layers, folder / "srde_weights.safetensors")
    (folder / "config.json").write_text(text)
    return folder


DEEP = "[" * 480 + "]" * 480


def test_deep_lists_in_json(small, tmp_path, capsys):
    folder = _hub(small, tmp_path / "s", f'{{"top_k": {DEEP}}}')
    assert "top_k" in refuse(small, folder, tmp_path, capsys)
    (folder / "config.json").write_text(f'{{"top_k": 2, "srde_layers": {DEEP}}}')
    report = convert(small, folder, tmp_path / "o.gguf", dry_run=True)
    assert [w for w in report.warnings if "srde_layers lists 1 layers" in w]


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e999", "-1", "-1e999", "2"])
def test_target_sparsity_that_no_checkpoint_has(small, tmp_path, value):
    folder = _hub(small, tmp_path / "s", f'{{"top_k": 2, "target_sparsity": {value}}}')
    report = convert(small, folder, tmp_path / "o.gguf", dry_run=True)
    assert [w for w in report.warnings if "target_sparsity is " in w]


def test_target_sparsity_that_is_nan(small, plain, tmp_path):
    nan = b"G" + struct.pack(">d", float("nan"))
    file = _with_config(plain, tmp_path / "s.pt", top_k=Op.number(2), target_sparsity=nan)
    report = convert(small, file, tmp_path / "o.gguf", dry_run=True)
    assert [w for w in report.warnings if "target_sparsity is nan" in w]


SIZES = {
    "text": Op.text("a" * 1_000_000),
    "dict": b"}",
    "nine": Op.tuple(*[Op.number(1)] * 9),
    "texts": Op.tuple(Op.text("a")),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_not_a_tensors(small, plain, tmp_path, capsys, name):
    """torch.Size makes a tuple of anything: of a text of 1 MB, 2000 times."""
    size = Op.glob("torch", "Size") + _get(10**6) + b"\x85R"
    value = SIZES[name] + _put(10**6)
    file = _with_config(
        plain, tmp_path / "s.pt", top_k=Op.number(2), a=value, b=b"](" + size * 2000 + b"e"
    )
    assert "torch.Size" in refuse(small, file, tmp_path, capsys)


def test_a_size_of_a_tensor(small, plain, tmp_path):
    torch.save({**torch.load(plain), "config": {"top_k": 2, "x": torch.Size([3, 4])}},
               tmp_path / "s.pt")  # fmt: skip
    assert convert(small, tmp_path / "s.pt", tmp_path / "o.gguf", dry_run=True).top_k == 2
