"""Types and bytes of the base's tensors against llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import read_sardine
import torch
from make_checkpoint import tiny_base
from sardine_gguf.convert import write_base
from sardine_gguf.convert.mixture import tensor_type

SHAPES = {
    # 17 layers reach every part of the rule; the attention output has rows of 64.
    "whole blocks": {"hidden": 256, "inner": 256, "layers": 17, "heads": 4, "heads_kv": 1},
    "tied": {"hidden": 256, "inner": 256, "layers": 3, "tied": True, "heads": 16, "heads_kv": 4},
    "rows of 64 and 100": {"hidden": 64, "inner": 100, "layers": 9},
    "tied rows of 96": {"hidden": 96, "inner": 160, "layers": 8, "tied": True},
}


def quantized_by_llama_cpp(source, target, ftype):
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("outtype", "ftype"), [("q4_k_m", 15), ("q8_0", 7)])
def test_as_llama_cpp(tmp_path, name, outtype, ftype):
    folder = tiny_base(tmp_path / "m", tokenizer=False, dtype=torch.bfloat16, **SHAPES[name])
    write_base(folder, tmp_path / "f32.gguf", "f32")
    write_base(folder, tmp_path / "ours.gguf", outtype)
    quantized_by_llama_cpp(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", ftype)
    ours = read_sardine.tensors(tmp_path / "ours.gguf")
    theirs = read_sardine.tensors(tmp_path / "theirs.gguf")
    kinds = {k: t.tensor_type.name for k, t in ours.items()}
    assert kinds == {k: t.tensor_type.name for k, t in theirs.items()}
    for key, tensor in ours.items():
        np.testing.assert_array_equal(tensor.data, theirs[key].data, err_msg=key)
    ours_kv, theirs_kv = (read_sardine.keys(tmp_path / f"{n}.gguf") for n in ("ours", "theirs"))
    assert ours_kv == theirs_kv


def test_rule_at_the_published_depth():
    """40 layers: 5 first, 5 last and each third between are the sensitive ones."""
    more = [
        i
        for i in range(40)
        if tensor_type("q4_k_m", f"blk.{i}.ffn_down.weight", (16384, 5120), i, 40, False).name
        == "q6_k"
    ]
    assert more == [*range(5), *range(7, 35, 3), *range(35, 40)]


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_k_m"])
def test_norms_and_vectors_stay_float32(outtype):
    for name, ne in (("blk.0.attn_norm.weight", (5120,)), ("output_norm.weight", (5120,))):
        assert tensor_type(outtype, name, ne, 0, 40, False).name == "f32"
