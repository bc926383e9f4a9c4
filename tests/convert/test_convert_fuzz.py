"""Damaged inputs: every one is refused with the package's own error, or read."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
from crafted import rezip, safetensors
from make_checkpoint import srde_layers, tiny_base
from sardine_gguf.convert import convert
from sardine_gguf.convert.safetensors_file import read_header
from sardine_gguf.errors import FormatError

ROUNDS = int(os.environ.get("SARDINE_FUZZ_ROUNDS", "120"))
SEED = os.environ.get("SARDINE_FUZZ_SEED", "")


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            start = rng.randrange(len(out))
            out[at:at] = out[start : start + rng.randrange(1, 40)]
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny_base(
        tmp_path_factory.mktemp("fuzz") / "m", layers=1, hidden=32, inner=32, head_dim=8, vocab=300
    )


def attempt(base, srde, out):
    try:
        convert(base, srde, out, outtype="f16", n_threads=1, force=True)
    except FormatError:
        return False
    return True


@pytest.mark.parametrize("part", ["file", "data.pkl"])
def test_checkpoints(small, tmp_path, part):
    layers = srde_layers(small, n_experts=2, n_atoms=2, positions=20)
    torch.save({"srde_layers": layers, "config": {"top_k": 1}}, tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    rng = random.Random(part + SEED)
    for _ in range(ROUNDS):
        if part == "file":
            (tmp_path / "bad.pt").write_bytes(damaged(whole, rng))
        else:
            rezip(
                tmp_path / "good.pt",
                tmp_path / "bad.pt",
                lambda m: m.update({"data.pkl": damaged(m["data.pkl"], rng)}),
            )
        attempt(small, tmp_path / "bad.pt", tmp_path / "o.gguf")
    assert attempt(small, tmp_path / "good.pt", tmp_path / "o.gguf")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_folders(small, tmp_path, name):
    layers = srde_layers(small, n_experts=2, n_atoms=2, positions=20)
    torch.save({"srde_layers": layers, "config": {"top_k": 1}}, tmp_path / "s.pt")
    good = (small / name).read_bytes()
    rng = random.Random(name + SEED)
    limit = 8 + int.from_bytes(good[:8], "little") if name.endswith("safetensors") else len(good)
    try:
        for _ in range(ROUNDS // 2):
            (small / name).write_bytes(damaged(good[:limit], rng) + good[limit:])
            attempt(small, tmp_path / "s.pt", tmp_path / "o.gguf")
    finally:
        (small / name).write_bytes(good)
    assert attempt(small, tmp_path / "s.pt", tmp_path / "o.gguf")


def replaced(value, rng):
    """The JSON value with one node replaced by another kind of value."""
    odd = rng.choice([None, True, -1, 0, 2**31, 2**70, 1e308, "", "x", [], {}, [[]], {"a": 1}])
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = replaced(copy[key], rng)
        return copy
    return odd


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_json_of_other_shapes(small, tmp_path, name):
    layers = srde_layers(small, n_experts=2, n_atoms=2, positions=20)
    torch.save({"srde_layers": layers, "config": {"top_k": 1}}, tmp_path / "s.pt")
    good = (small / name).read_bytes()
    value = json.loads(good)
    if name == "tokenizer.json":  # smaller, so that the structure is hit rather than the words
        value["model"]["vocab"] = dict(list(value["model"]["vocab"].items())[:12])
        value["model"]["merges"] = []
    rng = random.Random(name + SEED)
    try:
        for _ in range(ROUNDS):
            (small / name).write_text(json.dumps(replaced(value, rng)))
            attempt(small, tmp_path / "s.pt", tmp_path / "o.gguf")
    finally:
        (small / name).write_bytes(good)


def test_safetensors_headers_of_other_shapes(tmp_path):
    header = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "__metadata__": {"format": "pt"},
    }
    rng = random.Random("headers" + SEED)
    for _ in range(3 * ROUNDS):
        file = safetensors(tmp_path / "x.safetensors", replaced(header, rng), bytes(32))
        try:
            found = read_header(file)
        except FormatError:
            continue
        assert sum(t.array().nbytes for t in found.values()) == 32
