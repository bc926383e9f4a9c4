"""Damaged files of the other inputs: each one is refused with the package's own error, or read."""

from __future__ import annotations

import json
import random

import pytest
import torch
from make_checkpoint import srde_layers, tiny_base
from make_native import tiny_native
from safetensors.torch import load_file, save_file
from sardine_gguf.convert import convert, write_base
from sardine_gguf.errors import FormatError
from test_convert_fuzz import ROUNDS, SEED, attempt, damaged, replaced
from test_convert_split import split
from test_convert_srde_safetensors import flat


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model in Mistral's format with fp8 weights, and checkpoints for it in both formats."""
    home = tmp_path_factory.mktemp("fuzz")
    native = tiny_native(
        home / "m", layers=1, hidden=32, inner=32, head_dim=8, vocab=300,
        params={"quantization": {"qformat_weight": "fp8_e4m3"}},
    )  # fmt: skip
    tensors = load_file(native / "consolidated.safetensors")
    name = "layers.0.feed_forward.w1"
    tensors[name + ".weight"] = tensors[name + ".weight"].to(torch.float8_e4m3fn)
    tensors[name + ".qscale_weight"] = torch.tensor(0.5)
    save_file(tensors, native / "consolidated.safetensors")
    layers = srde_layers(native.parent / "hf" / "m", n_experts=2, n_atoms=2, positions=20)
    save_file(flat(layers), home / "srde_weights.safetensors")
    (home / "config.json").write_text('{"top_k": 1}')
    return home


def change(path, make, rounds, check):
    """Gives check the damaged file again and again; it must accept the good one."""
    good = path.read_bytes()
    rng = random.Random(path.name + SEED)
    limit = len(good)
    if path.suffix == ".safetensors":
        limit = 8 + int.from_bytes(good[:8], "little")
    try:
        for _ in range(rounds):
            path.write_bytes(make(good[:limit], rng) + good[limit:])
            check()
    finally:
        path.write_bytes(good)
    assert check()


def other_shape(data, rng):
    value = json.loads(data)
    if "vocab" in value:  # smaller, so that the structure is hit rather than the words
        value["vocab"] = value["vocab"][:6]
    return json.dumps(replaced(value, rng)).encode()


@pytest.mark.parametrize("make", [damaged, other_shape], ids=["bytes", "shape"])
@pytest.mark.parametrize("name", ["m/params.json", "m/tekken.json", "config.json"])
def test_json(folders, tmp_path, name, make):
    srde = folders / "srde_weights.safetensors"
    change(folders / name, make, ROUNDS // 2,
           lambda: attempt(folders / "m", srde, tmp_path / "o.gguf"))  # fmt: skip


@pytest.mark.parametrize("name", ["m/consolidated.safetensors", "srde_weights.safetensors"])
def test_safetensors(folders, tmp_path, name):
    srde = folders / "srde_weights.safetensors"
    change(folders / name, damaged, ROUNDS // 2,
           lambda: attempt(folders / "m", srde, tmp_path / "o.gguf"))  # fmt: skip


@pytest.mark.parametrize("part", [0, 1, 2])
def test_parts_of_a_split_base(folders, tmp_path, part):
    base = tiny_base(tmp_path / "b", layers=1, hidden=32, inner=32, head_dim=8, tokenizer=False)
    write_base(base, tmp_path / "whole.gguf")
    paths = split(tmp_path / "whole.gguf", tmp_path)
    srde = folders / "srde_weights.safetensors"

    def check():
        try:
            convert(paths[0], srde, tmp_path / "o.gguf", force=True)
        except FormatError:
            return False
        return True

    change(paths[part], lambda data, rng: damaged(data[:600], rng) + data[600:], ROUNDS // 2, check)
