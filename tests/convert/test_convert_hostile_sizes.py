"""Files that are made to take much more time or memory than they are long."""

from __future__ import annotations

import copy
import struct

import pytest
import torch
from crafted import make_zip, with_pickle
from make_checkpoint import srde_layers, tiny_base
from refusal import refuse
from sardine_gguf.convert import pt_pickle, pt_zip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One layer, no tokenizer: fast to convert."""
    return tiny_base(tmp_path_factory.mktemp("small") / "m", layers=1, tokenizer=False)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(4, b"\x81\x82\x83\x04"), (8, struct.pack("<Q", 2) + b"ab"), (7, b"\1"), (0, b"a")],
    ids=["u32", "texts", "bools", "bytes"],
)
def test_gguf_base_of_metadata(srde, tmp_path, capsys, kind, value):
    """One array of 24 MB: Python's objects for it would take up to 40 times as much."""
    n = (24 << 20) // len(value)
    array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, n) + value * n
    file = tmp_path / "base.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array)
    assert "metadata" in refuse(file, srde, tmp_path, capsys)


def test_gguf_base_of_many_keys(srde, tmp_path, capsys):
    keys = b"".join(
        struct.pack("<Q", 5) + b"%05x" % i + struct.pack("<IB", 0, 1) for i in range(500_000)
    )
    file = tmp_path / "base.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 500_000) + keys)
    assert "500000 keys" in refuse(file, srde, tmp_path, capsys)


def test_zip_of_many_entries(small, tmp_path, capsys, monkeypatch):
    """More entries in the directory than zipfile should make objects of."""
    file = make_zip(tmp_path / "s.pt", {"a/data.pkl": b"\x80\x02}."})
    data = file.read_bytes()
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entry = data[start:end]
    monkeypatch.setattr(pt_zip, "MAX_MEMBERS", 1000)
    for n, words in ((300_000, "directory"), (1001, "members")):
        size = n * len(entry)
        # Beyond 16 bits the count is in the 64-bit record.
        place = start + size
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, size, start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
        tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        file.write_bytes(data[:start] + entry * n + record + locator + tail)
        assert words in refuse(small, file, tmp_path, capsys)


@pytest.mark.parametrize(
    ("operations", "words"),
    [(b"N" * 400_000, "operations"), (b"]" * 500_000, "objects"), (b"N" + b"".join(
        b"r" + struct.pack("<I", i) for i in range(400_000)), "objects")],
    ids=["nothing", "lists", "memo"],
)  # fmt: skip
def test_pickle_beside_many_members(small, tmp_path, capsys, monkeypatch, operations, words):
    """The number of operations may grow with that of the members, but not without end."""
    monkeypatch.setattr(pt_pickle, "OPERATIONS_PER_MEMBER", 10**6)
    if words == "operations":
        monkeypatch.setattr(pt_pickle, "MAX_OPERATIONS", 300_000)
    members = {str(i): b"" for i in range(10)}
    file = with_pickle(tmp_path / "s.pt", b"\x80\x02" + operations + b".", **members)
    assert words in refuse(small, file, tmp_path, capsys)


@pytest.mark.parametrize("where", ["base", "hub"])
def test_config_is_looked_at_before_it_is_read(small, tmp_path, capsys, where):
    from shutil import copytree

    from safetensors.torch import save_file

    folder = tmp_path / "s"
    folder.mkdir()
    layers = srde_layers(small, duplicates=False)["0"]
    save_file({f"0.{k}": t for k, t in layers.items()}, folder / "srde_weights.safetensors")
    (folder / "config.json").write_text('{"top_k": 2}')
    copytree(small, tmp_path / "m")
    config = (folder if where == "hub" else tmp_path / "m") / "config.json"
    config.write_bytes(config.read_bytes() + b" " * (4 << 20))
    line = refuse(tmp_path / "m", folder, tmp_path, capsys)
    assert "expected at most 4194304" in line


def test_a_checkpoint_of_many_experts_is_read(small, tmp_path):
    """The limits leave room for what the training code could write."""
    from sardine_gguf.convert.checkpoint import read_checkpoint

    one = srde_layers(small, n_experts=256, positions=2)["0"]
    layers = {str(i): copy.deepcopy(one) for i in range(10)}
    torch.save({"srde_layers": layers}, tmp_path / "s.pt")
    assert len(read_checkpoint(tmp_path / "s.pt", 10).layers) == 10
