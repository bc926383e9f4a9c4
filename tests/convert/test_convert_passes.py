"""How often a conversion reads its inputs: bytes counted where they are read, file by file."""

from __future__ import annotations

import collections
import mmap
import os
from pathlib import Path

import pytest
import torch
from make_checkpoint import srde_checkpoint, srde_layers, tiny_base
from safetensors.torch import load_file, save_file
from sardine_gguf.convert import convert, write_base
from sardine_gguf.errors import FormatError
from test_convert_fp8 import fp8_folder
from test_convert_split import split


class Count:
    """Bytes by file that positioned reads took, and those of all reads of this process."""

    def __init__(self) -> None:
        self.by_file: collections.Counter[str] = collections.Counter()
        self.mapped: set[str] = set()
        self.started = self._of_process()

    @staticmethod
    def _of_process() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(lines[0].removeprefix("rchar: "))

    def elsewhere(self) -> int:
        """Bytes of the process's reads that are not among those by file."""
        return self._of_process() - self.started - sum(self.by_file.values())


@pytest.fixture
def count(monkeypatch):
    """Counts from here on, and notes the mapped files, which could be read without being counted."""
    found = Count()

    def name(fd):
        return str(Path(f"/proc/self/fd/{fd}").readlink())

    def counted(read):
        def call(fd, *arguments):
            got = read(fd, *arguments)
            number = got if isinstance(got, int) else len(got)
            found.by_file[name(fd)] += number
            return got

        return call

    class Mapping(mmap.mmap):
        def __new__(cls, fd, *arguments, **options):
            found.mapped.add(name(fd))
            return super().__new__(cls, fd, *arguments, **options)

    monkeypatch.setattr(os, "pread", counted(os.pread))
    monkeypatch.setattr(os, "preadv", counted(os.preadv))
    monkeypatch.setattr(mmap, "mmap", Mapping)
    return found


def passes(count: Count, file: Path) -> float:
    assert str(file.resolve()) not in count.mapped
    return count.by_file[str(file.resolve())] / file.stat().st_size


WIDTHS = {"hidden": 256, "inner": 512, "layers": 2, "vocab": 512}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base of 6 MB, a thousand times its headers."""
    return tiny_base(tmp_path_factory.mktemp("passes") / "base", **WIDTHS)


def _views(layers):
    """Every layer's importance in one storage, and atoms that are part of a wider one."""
    for layer in layers.values():
        names = [k for k in layer if k.endswith(".importance")]
        both = torch.stack([layer[k] for k in names])
        layer.update(zip(names, both, strict=True))
        atoms = layer["vocabulary.atoms"]
        wide = torch.cat([atoms, torch.zeros(len(atoms), 9)], 1)
        layer["vocabulary.atoms"] = wide[:, : atoms.shape[1]]
    return layers


def _write(path, base, kind):
    """A checkpoint as torch.save writes it, of views, or as safetensors with all copies apart."""
    if kind == "logits":
        return srde_checkpoint(path.with_suffix(".pt"), base, mask_logits=True)
    layers = srde_layers(base, density=0.05, duplicates=kind != "views")
    if kind == "safetensors":
        flat = {f"{i}.{k}": t.clone() for i, layer in layers.items() for k, t in layer.items()}
        save_file(flat, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    if kind == "copies":
        layers = {i: {k: t.clone() for k, t in layer.items()} for i, layer in layers.items()}
    torch.save(
        {"srde_layers": _views(layers) if kind == "views" else layers}, path.with_suffix(".pt")
    )
    return path.with_suffix(".pt")


@pytest.mark.parametrize("kind", ["plain", "views", "logits", "copies", "safetensors"])
@pytest.mark.parametrize("verify", [False, True])
def test_checkpoints(large, tmp_path, count, kind, verify):
    srde = _write(tmp_path / "s", large, kind)
    convert(large, srde, tmp_path / "o.gguf", outtype="q4_k_m", verify=verify)
    # Copies of the vocabulary are read to be compared, and then never again.
    least = 0.9 if kind in ("copies", "safetensors") else 1.9
    assert least < passes(count, srde) - verify * (least - 0.9) < 2.05
    assert 0.95 < passes(count, large / "model.safetensors") - verify < 1.05


@pytest.mark.parametrize("method", ["none", "residual", "extracted"])
def test_compensation(large, tmp_path, count, method):
    srde = _write(tmp_path / "s", large, "plain")
    convert(large, srde, tmp_path / "o.gguf", outtype="q3_k_m", compensation=method)
    assert 1.9 < passes(count, srde) < 2.05
    assert 0.95 < passes(count, large / "model.safetensors") < 1.05


def test_nothing_is_read_past_the_count(large, tmp_path, count):
    srde = _write(tmp_path / "s", large, "plain")
    convert(large, srde, tmp_path / "warm.gguf", outtype="f16")
    count.by_file.clear()
    count.started = Count._of_process()
    convert(large, srde, tmp_path / "o.gguf", outtype="f16")
    # Headers, configs, the tokenizer, and the output's header.
    assert count.elsewhere() < 300_000 < 0.1 * (large / "model.safetensors").stat().st_size


def test_frozen_copies_of_the_base_are_only_sampled(large, tmp_path, count):
    srde = srde_checkpoint(tmp_path / "s.pt", large, with_base_ffn=True, density=0.01)
    convert(large, srde, tmp_path / "o.gguf", outtype="q8_0")
    assert passes(count, srde) < 1


@pytest.mark.parametrize("of", ["folder", "gguf"])
def test_adapter(large, tmp_path, count, of):
    srde = _write(tmp_path / "s", large, "plain")
    base, stored = large, large / "model.safetensors"
    if of == "gguf":
        base = stored = tmp_path / "base.gguf"
        write_base(large, base, "q8_0")
    count.by_file.clear()
    convert(base, srde, tmp_path / "o.gguf", adapter=True)
    assert 1.9 < passes(count, srde) < 2.05
    assert passes(count, stored) < 0.01  # its norms


@pytest.mark.parametrize("verify", [False, True])
def test_base_alone(large, tmp_path, count, verify):
    write_base(large, tmp_path / "o.gguf", "q6_k", verify=verify)
    assert 0.95 < passes(count, large / "model.safetensors") - verify < 1.05


def test_gguf_bases(large, tmp_path, count):
    srde = _write(tmp_path / "s", large, "plain")
    write_base(large, tmp_path / "base.gguf", "q8_0")
    parts = split(tmp_path / "base.gguf", tmp_path, 3)
    for base, files in ((tmp_path / "base.gguf", [tmp_path / "base.gguf"]), (parts[0], parts)):
        count.by_file.clear()
        convert(base, srde, tmp_path / "o.gguf", force=True)
        assert all(0.5 < passes(count, file) < 1.05 for file in files)


def test_fp8_with_a_scale_for_each_element(tmp_path, count):
    """Scales four times the matrices' bytes; they are checked once and used once."""
    config = {"quant_method": "fp8", "weight_block_size": [1, 1]}
    folder, twin = fp8_folder(tmp_path, config, "weight_scale_inv", block=(1, 1))
    srde = srde_checkpoint(tmp_path / "s.pt", twin, with_base_ffn=True)
    convert(folder, srde, tmp_path / "o.gguf", outtype="f16")
    assert passes(count, folder / "model.safetensors") < 2.05


def test_tied_embeddings_that_are_stored_twice(tmp_path, count):
    base = tiny_base(tmp_path / "b", **{**WIDTHS, "layers": 1, "vocab": 2048}, tied=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors")
    write_base(base, tmp_path / "o.gguf", "q8_0")
    assert passes(count, base / "model.safetensors") < 2.05


@pytest.mark.parametrize("kind", ["plain", "views", "copies"])
@pytest.mark.parametrize("key", ["vocabulary.atoms", "experts.2.importance"])
def test_the_checking_pass_refuses_before_anything_is_written(large, tmp_path, kind, key):
    srde = _write(tmp_path / "s", large, kind)
    saved = torch.load(srde, weights_only=True)
    layer = saved["srde_layers"]["1"]
    where = layer[key].reshape(-1, layer[key].shape[-1])
    where[-1, -1] = float("nan")
    torch.save(saved, srde)
    seen = []
    with pytest.raises(FormatError, match=r"NaN|differs from vocabulary\.atoms"):
        convert(large, srde, tmp_path / "o.gguf", progress=lambda *a: seen.append(a[0]))
    assert set(seen) == {"reading"}


def test_nan_beside_a_view_is_none_of_it(large, tmp_path):
    """A storage may hold what no tensor of the checkpoint uses."""
    layers = _views(srde_layers(large, duplicates=False))
    n = layers["0"]["vocabulary.atoms"].shape[1]
    wide = torch.full((4, n + 9), float("nan"))
    wide[:, :n] = layers["0"]["vocabulary.atoms"]
    clean, odd = tmp_path / "clean.pt", tmp_path / "odd.pt"
    torch.save({"srde_layers": layers}, clean)
    layers["0"]["vocabulary.atoms"] = wide[:, :n]
    torch.save({"srde_layers": layers}, odd)
    for srde in (clean, odd):
        convert(large, srde, tmp_path / f"{srde.stem}.gguf", outtype="q8_0", verify=True)
    assert (tmp_path / "clean.gguf").read_bytes() == (tmp_path / "odd.gguf").read_bytes()
