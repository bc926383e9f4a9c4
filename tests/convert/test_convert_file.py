"""Whole conversions, read back by an independent reader."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest
import read_sardine
import torch
from make_checkpoint import (
    srde_checkpoint,
    srde_layers,
    tiny_base,
    torch_positions,
    torch_values,
)
from sardine_gguf.convert import convert, write_base
from sardine_gguf.errors import FormatError

# Half a step of the type, relative to the largest value of a block (Q8_0) or to the value (F16).
TOLERANCE = {"f32": 2e-6, "f16": 2.0**-10, "q8_0": 1 / 127}


def check_against_torch(path, layers, delta_type="f32"):
    found = read_sardine.layers(path)
    assert sorted(found) == sorted(int(k) for k in layers)
    for key, tensors in layers.items():
        layer = found[int(key)]
        positions = torch_positions(tensors).numpy()
        values = torch_values(tensors).numpy().astype(np.float64)
        order, mine = np.argsort(positions), np.argsort(layer.positions)
        np.testing.assert_array_equal(layer.positions[mine], positions[order])
        largest = np.abs(values).max(initial=1e-30)
        np.testing.assert_allclose(
            layer.values[:, mine], values[:, order], rtol=0, atol=TOLERANCE[delta_type] * largest
        )
        mean = values.mean(axis=1) if values.size else np.zeros(len(values))
        np.testing.assert_allclose(layer.mean, mean, rtol=1e-5, atol=1e-8)
        np.testing.assert_array_equal(layer.router, tensors["router.gate.weight"].float().numpy())
    return found


@pytest.mark.parametrize("delta_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("block_columns", [65536, 48, 1])
def test_layout_and_values(base, srde, tmp_path, delta_type, block_columns):
    out = tmp_path / "o.gguf"
    report = convert(
        base, srde, out, outtype="f16", delta_type=delta_type, block_columns=block_columns
    )
    assert report.warnings == []
    assert report.size == out.stat().st_size
    check_against_torch(out, srde_layers(base), delta_type)
    kv = read_sardine.keys(out)
    assert {k: v for k, v in kv.items() if k.startswith("sardine.")} == {
        "sardine.version": 1,
        "sardine.expert_count": 6,
        "sardine.expert_used_count": 2,
        "sardine.expert_names": ["math", "logic", "code", "science", "planning", "abstract"],
        "sardine.delta_mode": "sparse",
        "sardine.layers": [0, 1, 2],
        "sardine.block_columns": block_columns,
        "sardine.compensation": "none",
    }
    fields = gguf.GGUFReader(out).fields
    kinds = {k: [t.name for t in f.types] for k, f in fields.items() if k.startswith("sardine.")}
    assert kinds["sardine.layers"] == ["ARRAY", "UINT32"]
    assert kinds["sardine.expert_count"] == ["UINT32"]
    assert "mistral3.expert_count" not in kv


VARIANTS = {
    "five of which three": {"n_experts": 5, "top_k": 3},
    "one expert": {"n_experts": 1, "top_k": 1},
    "nine experts": {"n_experts": 9},
    "module prefix": {"module_prefix": True},
    "integer keys": {"int_keys": True},
    "base ffn": {"with_base_ffn": True},
    "no copies": {"duplicates": False},
    "mask logits": {"mask_logits": True},
    "some layers": {"layers": [0, 2]},
    "last layer first": {"layers": [2, 1]},
    "bf16": {"dtype": torch.bfloat16},
    "f16": {"dtype": torch.float16},
    "f64": {"dtype": torch.float64},
    "one position": {"positions": 1},
    "every position": {"density": 1.0},
    "one atom": {"n_atoms": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(base, tmp_path, name):
    options = dict(VARIANTS[name])
    file = srde_checkpoint(tmp_path / "s.pt", base, **options)
    report = convert(base, file, tmp_path / "o.gguf", outtype="f32")
    assert report.warnings == []
    for key in ("module_prefix", "int_keys", "top_k", "with_base_ffn"):
        options.pop(key, None)
    check_against_torch(tmp_path / "o.gguf", srde_layers(base, **options))
    kv = read_sardine.keys(tmp_path / "o.gguf")
    assert kv["sardine.expert_used_count"] == VARIANTS[name].get("top_k", 2)
    assert len(kv["sardine.expert_names"]) == options.get("n_experts", 6)


def test_no_positions(base, tmp_path):
    file = srde_checkpoint(tmp_path / "s.pt", base, positions=0)
    convert(base, file, tmp_path / "o.gguf", outtype="f32")
    for layer in read_sardine.layers(tmp_path / "o.gguf").values():
        assert layer.positions.size == 0
        assert not layer.mean.any()
    names = read_sardine.tensors(tmp_path / "o.gguf")
    assert not [n for n in names if n.endswith((".val", ".col", ".row_ptr", ".scale"))]


@pytest.mark.parametrize("empty", ["gate", "up", "down"])
def test_a_matrix_without_positions(base, tmp_path, empty):
    layers = srde_layers(base, layers=[1], positions=500)
    size = 64 * 100
    indices = torch.arange(500) * 7
    layers["1"]["mask_selector.indices"] = {
        "gate": size + indices * 3,
        "up": indices + torch.where(indices > 1500, 2 * size, 0),
        "down": 3 * indices,
    }[empty]
    torch.save({"srde_layers": layers, "config": {"top_k": 2}}, tmp_path / "s.pt")
    report = convert(base, tmp_path / "s.pt", tmp_path / "o.gguf", outtype="f32")
    assert report.positions[empty] == 0
    check_against_torch(tmp_path / "o.gguf", layers)
    assert f"blk.1.ffn_{empty}_delta.val" not in read_sardine.tensors(tmp_path / "o.gguf")


@pytest.mark.parametrize("delta_type", ["f32", "q8_0"])
def test_order_of_the_checkpoint_does_not_matter(base, srde, tmp_path, delta_type):
    layers = srde_layers(base)
    for tensors in layers.values():
        order = torch.argsort(tensors["mask_selector.indices"])
        for key, value in list(tensors.items()):
            if value.ndim == 1:
                tensors[key] = value[order]
            elif key.endswith("atoms"):
                tensors[key] = value[:, order]
    torch.save({"srde_layers": layers, "config": {"top_k": 2}}, tmp_path / "sorted.pt")
    convert(base, srde, tmp_path / "a.gguf", outtype="f16", delta_type=delta_type)
    convert(base, tmp_path / "sorted.pt", tmp_path / "b.gguf", outtype="f16", delta_type=delta_type)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("outtype", ["q8_0", "q4_k_m"])
def test_same_inputs_same_bytes(base, srde, tmp_path, outtype):
    shutil.copytree(base, tmp_path / "elsewhere" / base.name)
    shutil.copy(srde, tmp_path / "renamed.pt")
    convert(base, srde, tmp_path / "a.gguf", outtype=outtype, n_threads=1)
    convert(
        tmp_path / "elsewhere" / base.name,
        tmp_path / "renamed.pt",
        tmp_path / "b.gguf",
        outtype=outtype.upper(),
        n_threads=3,
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("outtype", ["f32", "f16", "q4_k_m"])
def test_gguf_base_is_copied(base, srde, tmp_path, outtype):
    write_base(base, tmp_path / "base.gguf", outtype)
    convert(tmp_path / "base.gguf", srde, tmp_path / "a.gguf")
    convert(
        base, srde, tmp_path / "b.gguf", outtype=outtype, delta_type="q8_0", compensation="none"
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_gguf_base_keeps_keys_and_alignment(base, srde, tmp_path):
    """A base with an alignment of 64 and every kind of key."""
    source = tmp_path / "base.gguf"
    plain = gguf.GGUFReader(write_base(base, tmp_path / "plain.gguf", "f32").outfile)
    writer = gguf.GGUFWriter(source, "mistral3")
    writer.add_custom_alignment(64)
    for key, field in plain.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[-1] if kinds[1:] else None)
    values = {
        "uint8": 7, "int8": -7, "uint16": 60000, "int16": -3, "uint32": 4_000_000_000,
        "int32": -5, "uint64": 2**63, "int64": -(2**62), "float32": 0.1, "float64": 0.1,
        "bool": True, "string": "grüße \u2581",
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.floats", [0.5, 0.25])
    writer.add_array("x.texts", ["a", "", "c"])
    for tensor in plain.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(source, srde, tmp_path / "o.gguf")
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "o.gguf")
    for key, field in before.fields.items():
        if not key.startswith("GGUF."):
            assert after.fields[key].types == field.types, key
            assert after.fields[key].contents() == field.contents(), key
    found = {t.name: t for t in after.tensors}
    for tensor in before.tensors:
        assert found[tensor.name].tensor_type == tensor.tensor_type
        np.testing.assert_array_equal(found[tensor.name].data, tensor.data)
    assert all(t.data_offset % 64 == 0 for t in after.tensors)


def test_names(base, tmp_path):
    file = srde_checkpoint(tmp_path / "s.pt", base, n_experts=8)
    report = convert(base, file, tmp_path / "o.gguf", dry_run=True)
    assert report.expert_names[5:] == ["abstract", "expert_6", "expert_7"]
    names = list("abcdefgh")
    assert convert(base, file, tmp_path / "o.gguf", expert_names=names).expert_names == names
    for wrong in (["a"], [*"abcdefg", "a"], [*"abcdefg", ""]):
        with pytest.raises(ValueError, match="expert names"):
            convert(base, file, tmp_path / "p.gguf", expert_names=wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outtype": "q4_k"}, "outtype"),
        ({"delta_type": "q4_0"}, "delta type"),
        ({"delta_mode": "off"}, "delta mode"),
        ({"block_columns": 0}, "block columns"),
        ({"block_columns": 65537}, "block columns"),
        ({"n_threads": 0}, "threads"),
    ],
)
def test_wrong_options(base, srde, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        convert(base, srde, tmp_path / "o.gguf", **options)
    assert not isinstance(error.value, FormatError)
    assert list(tmp_path.iterdir()) == []


def test_outtype_with_a_gguf_base(base, srde, tmp_path):
    write_base(base, tmp_path / "base.gguf", "f16")
    with pytest.raises(ValueError, match="copied as they are"):
        convert(tmp_path / "base.gguf", srde, tmp_path / "o.gguf", outtype="f16")


def test_default_types(base, srde, tmp_path):
    assert convert(base, srde, tmp_path / "o", dry_run=True).out_type == "q4_k_m"
    assert convert(base, srde, tmp_path / "o", dry_run=True).delta_type == "q8_0"
    assert convert(base, srde, tmp_path / "o", dry_run=True, outtype="f16").delta_type == "q8_0"
    assert convert(base, srde, tmp_path / "o", dry_run=True, outtype="F32").delta_type == "f32"


def test_dry_run_predicts_the_file(base, srde, tmp_path):
    planned = convert(base, srde, tmp_path / "o.gguf", dry_run=True)
    assert not (tmp_path / "o.gguf").exists()
    done = convert(base, srde, tmp_path / "o.gguf")
    assert planned.size == done.size == (tmp_path / "o.gguf").stat().st_size
    found = read_sardine.tensors(tmp_path / "o.gguf")
    assert [t.name for t in planned.tensors] == list(found)
    assert [t.nbytes for t in planned.tensors] == [t.n_bytes for t in found.values()]
    assert planned.density() == pytest.approx(0.02, rel=1e-2)
    assert sum(done.positions.values()) == 3 * round(3 * 64 * 100 * 0.02)
    text = done.summary()
    for part in ("math", "3 of 3 layers", "2.000%", "q4_k_m", "sparse"):
        assert part in text


def test_config_that_disagrees_only_warns(base, tmp_path):
    config = {
        "num_experts": 7, "num_delta_atoms": 3, "hidden_size": 65, "intermediate_size": 5120,
        "num_layers": 40, "target_sparsity": 0.04, "srde_layers": [0, 1],
    }  # fmt: skip
    file = srde_checkpoint(tmp_path / "s.pt", base, config=config)
    text = "\n".join(convert(base, file, tmp_path / "o.gguf").warnings)
    for key, said, found in (
        ("num_experts", "7", "6"), ("num_delta_atoms", "3", "4"), ("hidden_size", "65", "64"),
        ("intermediate_size", "5120", "100"), ("num_layers", "40", "3"),
        ("target_sparsity", "0.04", "0.02"), ("srde_layers", "2", "3"),
    ):  # fmt: skip
        (line,) = [t for t in text.splitlines() if f" {key} " in t]
        assert said in line
        assert found in line


def test_config_that_agrees_is_silent(base, tmp_path):
    config = {
        "num_experts": 6, "num_delta_atoms": 4, "hidden_size": 64, "intermediate_size": 100,
        "num_layers": 3, "target_sparsity": 0.02, "srde_layers": [0, 1, 2], "other": object,
    }  # fmt: skip
    del config["other"]
    file = srde_checkpoint(tmp_path / "s.pt", base, config=config)
    assert convert(base, file, tmp_path / "o.gguf").warnings == []


def test_top_k_comes_from_the_checkpoint_then_from_the_folder(base, tmp_path):
    folder = tmp_path / "hub"
    srde_checkpoint(folder / "srde_weights.pt", base, top_k=None)
    report = convert(base, folder, tmp_path / "o.gguf", dry_run=True)
    assert report.top_k == 2
    assert any("no top_k" in w for w in report.warnings)
    (folder / "config.json").write_text(json.dumps({"top_k": 3, "num_experts": 6}))
    report = convert(base, folder, tmp_path / "o.gguf", dry_run=True)
    assert (report.top_k, report.warnings) == (3, [])
    srde_checkpoint(folder / "srde_weights.pt", base, top_k=4)
    report = convert(base, folder, tmp_path / "o.gguf", dry_run=True)
    assert report.top_k == 4
    assert any("4 in the checkpoint" in w and "3 in config.json" in w for w in report.warnings)
    one = srde_checkpoint(tmp_path / "one.pt", base, n_experts=1, top_k=None)
    assert convert(base, one, tmp_path / "o.gguf", dry_run=True).top_k == 1


def test_base_ffn_of_another_model_warns(base, tmp_path):
    other = tiny_base(tmp_path / "other", inner=100, seed=5, tokenizer=False)
    file = srde_checkpoint(tmp_path / "s.pt", other, with_base_ffn=True)
    (warning,) = convert(base, file, tmp_path / "o.gguf").warnings
    assert "base_ffn.gate_proj" in warning
    rounded = srde_layers(base, with_base_ffn=True)
    for tensors in rounded.values():
        for key in list(tensors):
            if key.startswith("base_ffn"):
                tensors[key] = tensors[key].bfloat16()
    torch.save({"srde_layers": rounded, "config": {"top_k": 2}}, tmp_path / "r.pt")
    assert convert(base, tmp_path / "r.pt", tmp_path / "r.gguf").warnings == []


def test_large_tensors_are_converted_in_chunks(base, srde, tmp_path, monkeypatch):
    from sardine_gguf.convert import base_gguf, hf_tensors

    convert(base, srde, tmp_path / "a.gguf", compensation="none")
    convert(base, srde, tmp_path / "repaired.gguf", compensation="extracted")
    monkeypatch.setattr(hf_tensors, "CHUNK_BYTES", 3 * 64 * 4)
    convert(base, srde, tmp_path / "b.gguf", compensation="none")
    convert(base, srde, tmp_path / "d.gguf", compensation="extracted")
    assert (tmp_path / "d.gguf").read_bytes() == (tmp_path / "repaired.gguf").read_bytes()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    monkeypatch.setattr(base_gguf, "COPY_BYTES", 100)
    write_base(base, tmp_path / "base.gguf", "q4_k_m")
    convert(tmp_path / "base.gguf", srde, tmp_path / "c.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
