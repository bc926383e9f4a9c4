"""A SRDE checkpoint as safetensors gives the same bytes as the .pt, and is read as strictly."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from make_checkpoint import srde_checkpoint, srde_layers
from safetensors.torch import save_file
from sardine_gguf.convert import convert
from sardine_gguf.convert.checkpoint import read_checkpoint
from sardine_gguf.convert.cli import main
from sardine_gguf.errors import FormatError

SPELLINGS = {
    "whole": "srde_layers.{i}.{key}",
    "bare": "{i}.{key}",
    "module first": "module.srde_layers.{i}.{key}",
    "module of the layer": "srde_layers.module.{i}.{key}",
    "module of the key": "srde_layers.{i}.module.{key}",
    "module, bare": "module.{i}.{key}",
}


def flat(layers, spelling="whole"):
    # safetensors wants no shared storages.
    return {
        SPELLINGS[spelling].format(i=i, key=key): tensor.clone()
        for i, tensors in layers.items()
        for key, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def expected(base, srde, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "o.gguf"
    convert(base, srde, out, outtype="f16")
    return out.read_bytes()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_file_named_directly(base, expected, tmp_path, spelling):
    save_file(flat(srde_layers(base), spelling), tmp_path / "srde_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"top_k": 2, "num_experts": 6}))
    report = convert(
        base, tmp_path / "srde_weights.safetensors", tmp_path / "o.gguf", outtype="f16"
    )
    assert (tmp_path / "o.gguf").read_bytes() == expected
    assert report.warnings == []


@pytest.mark.parametrize("name", ["srde_weights", "weights", "model"])
def test_folder(base, expected, tmp_path, name):
    save_file(flat(srde_layers(base)), tmp_path / f"{name}.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"top_k": 2}))
    convert(base, tmp_path, tmp_path / "o.gguf", outtype="f16")
    assert (tmp_path / "o.gguf").read_bytes() == expected


@pytest.mark.parametrize("name", ["srde_weights", "model"])
def test_several_files_with_an_index(base, expected, tmp_path, name):
    tensors = flat(srde_layers(base))
    names = sorted(tensors)
    mapping = {}
    for i in range(3):
        shard = f"{name}-{i + 1:05}-of-00003.safetensors"
        save_file({n: tensors[n] for n in names[i::3]}, tmp_path / shard)
        mapping.update(dict.fromkeys(names[i::3], shard))
    index = tmp_path / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": mapping}))
    (tmp_path / "config.json").write_text(json.dumps({"top_k": 2}))
    for path in (tmp_path, index):
        convert(base, path, tmp_path / "o.gguf", outtype="f16", force=True)
        assert (tmp_path / "o.gguf").read_bytes() == expected
    inputs = read_checkpoint(tmp_path, 3).inputs
    assert {p.name for p in inputs} == {"config.json", index.name, *set(mapping.values())}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(base, tmp_path, dtype):
    """Positions may be of any integer type; the values of any float type."""
    layers = srde_layers(base, dtype=dtype)
    torch.save({"srde_layers": layers, "config": {"top_k": 2}}, tmp_path / "s.pt")
    for tensors in layers.values():
        tensors["mask_selector.indices"] = tensors["mask_selector.indices"].to(torch.int32)
    save_file(flat(layers), tmp_path / "s.safetensors")
    (tmp_path / "config.json").write_text('{"top_k": 2}')
    for suffix in ("pt", "safetensors"):
        convert(base, tmp_path / f"s.{suffix}", tmp_path / f"{suffix}.gguf", outtype="f16")
    assert (tmp_path / "pt.gguf").read_bytes() == (tmp_path / "safetensors.gguf").read_bytes()


def test_mask_logits_and_base_ffn(base, tmp_path):
    layers = srde_layers(base, mask_logits=True, with_base_ffn=True, duplicates=False)
    save_file(flat(layers), tmp_path / "s.safetensors")
    srde_checkpoint(tmp_path / "s.pt", base, mask_logits=True, with_base_ffn=True)
    for suffix in ("pt", "safetensors"):
        convert(base, tmp_path / f"s.{suffix}", tmp_path / f"{suffix}.gguf", outtype="f16")
    assert (tmp_path / "pt.gguf").read_bytes() == (tmp_path / "safetensors.gguf").read_bytes()


def test_without_a_config_two_experts_run(base, tmp_path):
    save_file(flat(srde_layers(base)), tmp_path / "s.safetensors")
    report = convert(base, tmp_path / "s.safetensors", tmp_path / "o.gguf", outtype="f16")
    assert any("no top_k" in w for w in report.warnings)


def test_other_tensors_beside_the_layers_are_named(base, tmp_path):
    tensors = flat(srde_layers(base))
    tensors.update({f"model.layers.{i}.x.weight": torch.ones(2) for i in range(9)})
    save_file(tensors, tmp_path / "s.safetensors")
    report = convert(base, tmp_path / "s.safetensors", tmp_path / "o.gguf", outtype="f16")
    assert sum("ignored 9 entries" in w for w in report.warnings) == 1


def _refuse(base, srde, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    capsys.readouterr()
    assert main(["--base", str(base), "--srde", str(srde), "-o", str(out / "o.gguf")]) == 3
    lines = [t for t in capsys.readouterr().err.splitlines() if not t.startswith("warning: ")]
    assert len(lines) == 1
    assert list(out.iterdir()) == []
    return lines[0]


ROUTER, INDEX = "srde_layers.0.router.gate.weight", "srde_layers.0.mask_selector.indices"


def _rename(old, new):
    return lambda t: t.update({new: t.pop(old)})


EDITS = {
    "both spellings": (_rename(ROUTER, "0.router.gate.weight"), "prefix srde_layers"),
    "module twice": (lambda t: t.update({ROUTER.replace("router", "module.router"):
                                         t[ROUTER].clone()}), "twice"),
    "missing": (lambda t: t.pop(ROUTER), "missing router.gate.weight"),
    "unknown": (lambda t: t.update({"srde_layers.0.foo": torch.ones(1)}), "foo"),
    "layer 007": (_rename(ROUTER, "srde_layers.007.router.gate.weight"), "not a layer number"),
    "layer -1": (_rename(ROUTER, "srde_layers.-1.router.gate.weight"), "not a tensor of"),
    "layer \u0663": (_rename(ROUTER, "srde_layers.\u0663.router.gate.weight"), "not a tensor of"),
    "layer 2^64": (_rename(ROUTER, f"srde_layers.{2**64}.router.gate.weight"), "not a layer"),
    "layer 3": (_rename(ROUTER, "srde_layers.3.router.gate.weight"), "3 layers only"),
    "no layer": (_rename(ROUTER, "srde_layers.router"), "not a tensor of"),
    "no key": (_rename(ROUTER, "srde_layers.0"), "not a tensor of"),
    "srde_layers itself": (lambda t: t.update({"srde_layers": torch.ones(1)}), "srde_layers"),
    "config is a tensor": (lambda t: t.update({"config": torch.ones(1)}), "config"),
    "float indices": (lambda t: t.update({INDEX: t[INDEX].float()}), "integers"),
    "bool indices": (lambda t: t.update({INDEX: t[INDEX] > 4}), "integers"),
    "unsigned indices": (lambda t: t.update({INDEX: t[INDEX].to(torch.uint32)}), "U32"),
    "integer router": (lambda t: t.update({ROUTER: t[ROUTER].long()}), "expected f32"),
    "fp8 router": (lambda t: t.update({ROUTER: t[ROUTER].to(torch.float8_e4m3fn)}), "f8_e4m3"),
    "complex router": (lambda t: t.update({ROUTER: t[ROUTER].to(torch.complex64)}), "C64"),
    "negative index": (lambda t: t[INDEX].__setitem__(0, -1), "-1"),
    "router NaN": (lambda t: t[ROUTER].__setitem__((0, 0), float("nan")), "router"),
    "empty": (lambda t: t.clear(), "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_refused(base, tmp_path, capsys, name):
    change, words = EDITS[name]
    tensors = flat(srde_layers(base, duplicates=False))
    change(tensors)
    save_file(tensors, tmp_path / "s.safetensors")
    line = _refuse(base, tmp_path / "s.safetensors", tmp_path, capsys)
    assert words in line


def test_a_base_model_is_no_checkpoint(base, tmp_path, capsys):
    assert "not a tensor of a SRDE layer" in _refuse(base, base, tmp_path, capsys)


def test_several_candidates(base, srde, tmp_path, capsys):
    save_file(flat(srde_layers(base)), tmp_path / "srde_weights.safetensors")
    shutil.copy(srde, tmp_path / "srde_weights.pt")
    line = _refuse(base, tmp_path, tmp_path, capsys)
    assert "srde_weights.pt and " in line
    assert "--srde" in line


def test_index_leaves_the_folder(base, tmp_path, capsys):
    folder = tmp_path / "srde"
    folder.mkdir()
    tensors = flat(srde_layers(base))
    save_file(tensors, tmp_path / "outside.safetensors")
    index = folder / "srde_weights.safetensors.index.json"
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    for target in ("../outside.safetensors", "/etc/passwd", "link.safetensors",
                   "pipe.safetensors", "missing.safetensors"):  # fmt: skip
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, target)}))
        _refuse(base, folder, tmp_path, capsys)


def test_truncated(base, tmp_path):
    save_file(flat(srde_layers(base, layers=[0])), tmp_path / "good.safetensors")
    data = (tmp_path / "good.safetensors").read_bytes()
    for i in range(64):
        (tmp_path / "cut.safetensors").write_bytes(data[: len(data) * i // 64])
        with pytest.raises(FormatError):
            read_checkpoint(tmp_path / "cut.safetensors", 3)


def test_output_may_not_be_a_file_of_the_checkpoint(base, tmp_path):
    save_file(flat(srde_layers(base)), tmp_path / "s.safetensors")
    (tmp_path / "link.gguf").hardlink_to(tmp_path / "s.safetensors")
    with pytest.raises(FormatError):
        convert(base, tmp_path / "s.safetensors", tmp_path / "link.gguf", force=True)
