"""FP8 weights: the values torch makes of them, and scales that do not fit."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
import read_sardine
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_checkpoint import srde_checkpoint, tiny_base
from safetensors.torch import load_file, save_file
from sardine_gguf.convert import convert, native, write_base
from sardine_gguf.convert.arrays import DTYPES, to_float32
from sardine_gguf.convert.hf_quant import WeightSource
from sardine_gguf.convert.safetensors_file import read_header
from sardine_gguf.errors import FormatError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(("name", "dtype"), [("f8_e4m3", E4M3), ("f8_e5m2", E5M2)])
def test_every_byte_has_torchs_value(name, dtype):
    code = np.arange(256, dtype=np.uint8)
    ours = to_float32(code, DTYPES[name])
    theirs = torch.from_numpy(code).view(dtype).float().numpy()
    np.testing.assert_array_equal(ours, theirs)
    assert (np.signbit(ours) == np.signbit(theirs)).all()


def by_numpy(raw, kind, scale, block_rows, block_cols, first_row):
    """What decode_fp8 makes, an element's table value and scale at a time."""
    row = (first_row + np.arange(raw.shape[0])) // block_rows
    column = np.arange(raw.shape[1]) // block_cols
    with np.errstate(all="ignore"):
        return to_float32(raw, DTYPES[kind]) * scale[row][:, column]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_decoding_equals_numpys_bit_for_bit(data):
    """Any bytes, NaN among them, any blocks, cut off or not, from any row, on any threads."""
    n, m = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 600))
    first, extra = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 3))
    block = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 700))
    kind = data.draw(st.sampled_from(["f8_e4m3", "f8_e5m2"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    raw = rng.integers(0, 256, (n, m)).astype(np.uint8)
    shape = (-(-max(1, first + n) // block[0]) + extra, -(-m // block[1]))
    scale = np.exp2(rng.uniform(-140, 20, shape)).astype(np.float32)  # subnormal ones too
    out = np.full((n, m), 7, np.float32)
    native.decode_fp8(raw, kind, scale, out, block_rows=block[0], block_cols=block[1],
                      first_row=first, n_threads=data.draw(st.integers(1, 3)))  # fmt: skip
    expected = by_numpy(raw, kind, scale, *block, first)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", ["f8_e4m3", "f8_e5m2"])
@pytest.mark.parametrize("by", ["scalar", "row", "block"])
def test_every_byte_with_every_kind_of_scale(kind, by):
    raw = np.tile(np.arange(256, dtype=np.uint8), (300, 3))
    blocks = {"scalar": (300, 768), "row": (1, 768), "block": (128, 128)}[by]
    shape = (-(-300 // blocks[0]), -(-768 // blocks[1]))
    scale = np.random.default_rng(3).uniform(1e-4, 0.1, shape).astype(np.float32)
    out = np.empty(raw.shape, np.float32)
    native.decode_fp8(raw, kind, scale, out, block_rows=blocks[0], block_cols=blocks[1])
    expected = by_numpy(raw, kind, scale, *blocks, 0)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    "change",
    [
        {"stored": "f16"},
        {"scale": np.ones((2, 3), np.float32)},
        {"scale": np.ones(8, np.float32)},
        {"first_row": 1},
        {"first_row": -1},
        {"block_rows": 0},
        {"block_cols": -1},
        {"block_cols": 2**62},
        {"out": np.empty((4, 63), np.float32)},
        {"out": np.frombuffer(bytes(4 * 4 * 64), np.float32).reshape(4, 64)},
        {"out": np.empty((4, 64))},
        {"data": np.zeros((4, 128), np.uint8)[:, ::2]},
    ],
)
def test_decoding_refuses_what_does_not_fit(change):
    good = {"data": np.zeros((4, 64), np.uint8), "stored": "f8_e4m3",
            "scale": np.ones((2, 4), np.float32), "out": np.empty((4, 64), np.float32),
            "block_rows": 2, "block_cols": 16}  # fmt: skip
    native.decode_fp8(**good)
    with pytest.raises((ValueError, TypeError)):
        native.decode_fp8(**{**good, **change})


def quantized(weight, dtype=E4M3, block=None):
    """The fp8 values and the scales of a matrix, and what they stand for, by torch alone."""
    largest = torch.finfo(dtype).max
    if block is None:
        scale = weight.abs().max() / largest
        full = scale.expand(weight.shape)
    elif block == "row":
        scale = weight.abs().amax(1, keepdim=True) / largest
        full = scale.expand(weight.shape)
    else:
        n, m = (math.ceil(s / b) for s, b in zip(weight.shape, block, strict=True))
        scale = torch.ones(n, m)
        for i in range(n):
            for j in range(m):
                piece = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
                scale[i, j] = piece.abs().max() / largest
        full = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        full = full[: weight.shape[0], : weight.shape[1]]
    values = (weight / full).to(dtype)
    return values, scale, values.float() * full


def fp8_folder(folder, config, scale_name, block=None, dtype=E4M3, scale_dtype=torch.float32,
               **options):  # fmt: skip
    """A model whose layers' matrices are fp8, and its twin in float32."""
    twin = tiny_base(folder / "twin" / "m", inner=100, **options)
    folder = tiny_base(folder / "fp8" / "m", inner=100, **options)
    tensors = load_file(folder / "model.safetensors")
    plain = dict(tensors)
    for name, weight in list(tensors.items()):
        if not name.endswith("_proj.weight") or weight.ndim != 2:
            continue
        values, scale, _ = quantized(weight, dtype, block)
        scale = scale.to(scale_dtype)
        full = scale.float()
        if isinstance(block, tuple):
            full = full.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            full = full[: weight.shape[0], : weight.shape[1]]
        stem = name.removesuffix("weight")
        tensors[name], plain[name] = values, values.float() * full
        tensors[stem + scale_name] = scale
        tensors[stem + ("input_scale" if scale_name == "weight_scale" else "activation_scale")] = (
            torch.tensor(0.5)
        )
    save_file(tensors, folder / "model.safetensors")
    save_file(plain, twin / "model.safetensors")
    data = json.loads((folder / "config.json").read_text())
    data["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(data))
    return folder, twin


def compressed(**weights):
    group = {"weights": {"type": "float", "num_bits": 8, **weights}, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": group}}  # fmt: skip


KINDS = {
    "per tensor": ({"quant_method": "fp8"}, "weight_scale_inv", {}),
    "per tensor, bf16": ({"quant_method": "fp8", "weight_block_size": None}, "weight_scale_inv",
                         {"scale_dtype": torch.bfloat16}),
    "blocks": ({"quant_method": "fp8", "weight_block_size": [16, 16]}, "weight_scale_inv",
               {"block": (16, 16)}),
    "blocks that do not fit": ({"quant_method": "fp8", "weight_block_size": [7, 24]},
                               "weight_scale_inv", {"block": (7, 24)}),
    "one block": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "weight_scale_inv",
                  {"block": (128, 128)}),
    "e5m2": ({"quant_method": "fp8"}, "weight_scale_inv", {"dtype": E5M2}),
    "rows": (compressed(strategy="channel"), "weight_scale", {"block": "row"}),
    "compressed blocks": (compressed(strategy="block", block_structure=[16, 32]), "weight_scale",
                          {"block": (16, 32)}),
    "compressed tensor": (compressed(strategy="tensor"), "weight_scale", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_file_is_that_of_the_dequantized_model(tmp_path, name):
    """The bytes are those of a float32 model with torch's values: q and k permuted, all."""
    config, scale_name, options = KINDS[name]
    folder, twin = fp8_folder(tmp_path, config, scale_name, **options)
    for outtype in ("f32", "q8_0"):
        write_base(folder, tmp_path / "fp8.gguf", outtype, force=True)
        write_base(twin, tmp_path / "twin.gguf", outtype, force=True)
        assert (tmp_path / "fp8.gguf").read_bytes() == (tmp_path / "twin.gguf").read_bytes()


@pytest.mark.parametrize("wrapped", ["old", "new"])
def test_wrapped_model(tmp_path, wrapped):
    folder, twin = fp8_folder(tmp_path, {"quant_method": "fp8"}, "weight_scale_inv",
                              wrapped=wrapped)  # fmt: skip
    write_base(folder, tmp_path / "fp8.gguf", "f32")
    write_base(twin, tmp_path / "twin.gguf", "f32")
    assert (tmp_path / "fp8.gguf").read_bytes() == (tmp_path / "twin.gguf").read_bytes()


def test_copies_of_the_base_are_compared_with_the_dequantized_values(tmp_path):
    folder, twin = fp8_folder(tmp_path, {"quant_method": "fp8", "weight_block_size": [16, 24]},
                              "weight_scale_inv", block=(16, 24))  # fmt: skip
    srde_checkpoint(tmp_path / "same.pt", twin, with_base_ffn=True)
    report = convert(folder, tmp_path / "same.pt", tmp_path / "o.gguf", outtype="f16")
    assert not any("base_ffn" in w for w in report.warnings)
    other = tiny_base(tmp_path / "other", inner=100, seed=5)
    srde_checkpoint(tmp_path / "other.pt", other, with_base_ffn=True)
    report = convert(folder, tmp_path / "other.pt", tmp_path / "o.gguf", outtype="f16", force=True)
    assert any("base_ffn" in w for w in report.warnings)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_and_elements_are_those_of_the_whole(tmp_path_factory, data):
    n, m = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    block = data.draw(st.one_of(st.none(), st.just("row"),
                                st.tuples(st.integers(1, 50), st.integers(1, 50))))  # fmt: skip
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    values, scale, full = quantized(torch.randn(n, m, generator=g) + 0.01, E4M3, block)
    file = tmp_path_factory.mktemp("rows") / "x.safetensors"
    save_file({"w": values, "s": scale}, file)
    header = read_header(file)
    source = WeightSource(header["w"], header["s"], block if isinstance(block, tuple) else None)
    source.check()
    chunks = [rows.copy() for rows, kind in source.chunks(data.draw(st.integers(1, n + 3)), 2)]
    np.testing.assert_array_equal(np.concatenate(chunks), full.numpy())
    flat = np.array(data.draw(st.lists(st.integers(0, n * m - 1), min_size=1, max_size=9)))
    np.testing.assert_array_equal(source.at(flat), full.numpy().reshape(-1)[flat])


def _edit(change):
    def edit(tensors, config):
        change(tensors)

    return edit


UP = "model.layers.1.mlp.up_proj.weight"
SCALE = UP + "_scale_inv"
BAD = {
    "no scale": (_edit(lambda t: t.pop(SCALE)), "no scale"),
    "scale alone": (_edit(lambda t: t.update({UP: t[UP].float()})), "F32 with the scale"),
    "scale of a norm": (_edit(lambda t: t.update(
        {"model.norm.weight_scale_inv": torch.tensor(1.0)})), "norm.weight"),
    "fp8 norm": (_edit(lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(E4M3)})),
                 "no scale"),
    "scale of nothing": (_edit(lambda t: t.update(
        {"model.layers.9.mlp.up_proj.weight_scale_inv": torch.tensor(1.0)})), "unknown"),
    "shape": (_edit(lambda t: t.update({SCALE: torch.ones(2, 2)})), "the shape [2, 2]"),
    "transposed": (_edit(lambda t: t.update({SCALE: t[SCALE].T.contiguous()})), "the shape"),
    "integers": (_edit(lambda t: t.update({SCALE: t[SCALE].long()})), "I64"),
    "fp8 scale": (_edit(lambda t: t.update({SCALE: t[SCALE].to(E4M3)})), "F8_E4M3"),
    "e8m0 scale": (_edit(lambda t: t.update({SCALE: t[SCALE].to(torch.float8_e8m0fnu)})),
                   "F8_E8M0"),
    "NaN scale": (_edit(lambda t: t[SCALE].__setitem__((0, 0), math.nan)), "not positive"),
    "infinite scale": (_edit(lambda t: t[SCALE].__setitem__((1, 1), math.inf)), "not positive"),
    "zero scale": (_edit(lambda t: t[SCALE].__setitem__((1, 1), 0.0)), "not positive"),
    "negative scale": (_edit(lambda t: t[SCALE].__setitem__((1, 1), -1.0)), "not positive"),
    "NaN value": (_edit(lambda t: t[UP].view(torch.uint8).__setitem__((3, 3), 127)), "NaN"),
    "bytes": (_edit(lambda t: t.update({UP: t[UP].view(torch.uint8)})), "type U8"),
    "int8": (_edit(lambda t: t.update({UP: t[UP].view(torch.int8)})), "type I8"),
    "no config": (lambda t, c: c.pop("quantization_config"), "unknown"),
    "another block": (lambda t, c: c["quantization_config"].update(weight_block_size=[8, 8]),
                      "the shape"),
    "no block": (lambda t, c: c["quantization_config"].update(weight_block_size=None), "the shape"),
}  # fmt: skip


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    return fp8_folder(folder, config, "weight_scale_inv", block=(16, 16))[0]


@pytest.mark.parametrize("name", BAD)
def test_scales_that_do_not_fit(blocks, tmp_path, name):
    change, words = BAD[name]
    tensors = {k: v.clone() for k, v in load_file(blocks / "model.safetensors").items()}
    config = json.loads((blocks / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=words.replace("[", r"\[")):
        write_base(tmp_path, tmp_path / "o.gguf", "f32")
    assert not (tmp_path / "o.gguf").exists()


def test_memory_is_bounded(tmp_path, monkeypatch):
    """A chunk of rows at a time: far below the float32 matrix of 64 MB."""
    from sardine_gguf.convert import hf_tensors

    monkeypatch.setattr(hf_tensors, "CHUNK_BYTES", 1 << 20)
    rows, cols = 4096, 4096
    save_file({"w": torch.ones(rows, cols).to(E4M3), "s": torch.ones(32, 32)},
              tmp_path / "x.safetensors")  # fmt: skip
    header = read_header(tmp_path / "x.safetensors")
    source = WeightSource(header["w"], header["s"], (128, 128))
    part = hf_tensors.BaseTensorPart(
        hf_tensors.BaseTensor("blk.0.attn_q.weight", source, 0, 32), hf_tensors.schema.F16, 1
    )
    tracemalloc.start()
    total = sum(len(piece) for _, piece in part.produce())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == rows * cols * 2
    assert peak < 12 << 20  # the matrix is 64 MiB in float32, one head of it 2 MiB


def test_types_of_the_output(blocks, tmp_path):
    write_base(blocks, tmp_path / "o.gguf", "bf16")
    held = read_sardine.tensors(tmp_path / "o.gguf")
    assert held["blk.0.ffn_up.weight"].tensor_type.name == "BF16"
    assert not any("scale" in name for name in held)
