"""Error compensation: what the file holds, and that each mode computes what it says on the better base.

Exactness is tested where the base's rows are no whole blocks and so stay F16: then the runtime's own
rounding (F16 weights and activations, 2^-11 each, measured beside it) is all that is left, and a missing,
doubled or misplaced shared part is a thousand times above it.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import read_sardine
import torch
from models import TinyModel, make_model, nmse, random_tokens
from numpy.typing import NDArray
from reference import Reference
from sardine_gguf.convert import OptionError, convert

MODES = ("sparse", "gain", "off")
TOKENS = random_tokens(150)


@pytest.fixture(scope="module")
def blocky(workshop: Path) -> TinyModel:
    """Rows of whole blocks of every type; float32 file."""
    base = {"hidden": 256, "inner": 512, "layers": 2, "std": 0.06}
    model = make_model(workshop / "blocky", base=base, srde={"density": 0.04, "n_experts": 3})
    saved = torch.load(model.srde, weights_only=True)
    for key, layer in saved["srde_layers"].items():  # the largest weights, as published masks are
        flat = torch.from_numpy(ffn_values(model.gguf, int(key)))
        n = layer["mask_selector.indices"].numel()
        layer["mask_selector.indices"] = torch.argsort(-flat.abs())[:n]
    torch.save(saved, model.srde)
    convert(model.base, model.srde, model.gguf, outtype="f32", delta_type="f32", force=True)
    return model


@pytest.fixture(scope="module")
def ragged(workshop: Path) -> TinyModel:
    """Rows of 40 and 97, which stay F16 in a q8_0 file."""
    base = {"hidden": 40, "inner": 97, "heads": 2, "heads_kv": 1, "head_dim": 8}
    return make_model(workshop / "ragged", base=base, srde={"density": 0.1, "n_experts": 4})


def ffn_values(path: Path, layer: int) -> NDArray[np.float64]:
    """A file's FFN parameters in the checkpoint's flat order, as its base tensors mean them."""
    held = read_sardine.tensors(path)
    parts = [held[f"blk.{layer}.ffn_{m}.weight"] for m in ("gate", "up", "down")]
    return np.concatenate(
        [gguf.dequantize(t.data, t.tensor_type).astype(np.float64).reshape(-1) for t in parts]
    )


def exact_values(model: TinyModel, layer: int) -> NDArray[np.float64]:
    """The same from the f32 file."""
    return ffn_values(model.gguf, layer)


def compensated(model: TinyModel, method: str, outtype: str, **options: str) -> Path:
    """A conversion with one method."""
    name = "-".join([method, outtype, *options.values()]) + ".gguf"
    return model.converted(name, outtype=outtype, compensation=method, **options)


@pytest.mark.parametrize("outtype", ["q8_0", "q4_k_m"])
def test_residual_is_in_every_expert(blocky: TinyModel, outtype: str) -> None:
    """Base plus values gives the exact weight plus the checkpoint's value, for each expert."""
    plain = compensated(blocky, "none", outtype, delta_type="f32")
    repaired = compensated(blocky, "residual", outtype, delta_type="f32")
    a, b = read_sardine.layers(plain), read_sardine.layers(repaired)
    for i in a:
        at = a[i].positions
        np.testing.assert_array_equal(at, b[i].positions)
        lost = exact_values(blocky, i)[at] - ffn_values(repaired, i)[at]
        assert np.abs(lost).max() > 1e-4
        np.testing.assert_allclose(b[i].values - a[i].values, [lost] * 3, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(a[i].mean, b[i].mean)
        np.testing.assert_array_equal(ffn_values(plain, i), ffn_values(repaired, i))
    assert plain.stat().st_size == repaired.stat().st_size


@pytest.mark.parametrize("shared_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("outtype", ["q8_0", "q4_k_m"])
def test_extracted_weights_are_whole_again(
    blocky: TinyModel, outtype: str, shared_type: str
) -> None:
    """Base plus shared part gives the exact weight at the positions; the base elsewhere got better."""
    plain = compensated(blocky, "none", outtype, delta_type="f32")
    path = compensated(blocky, "extracted", outtype, delta_type="f32", shared_type=shared_type)
    a, b = read_sardine.layers(plain), read_sardine.layers(path)
    for i in a:
        exact, found = exact_values(blocky, i), ffn_values(path, i)
        whole = found[b[i].positions] + b[i].shared
        wanted = exact[b[i].positions]
        # Half a step: 2^-11 of a value in f16, 1/254 of the largest in a block in q8_0 (and F16 scales).
        step = {"f32": 2.0**-24, "f16": 2.0**-11, "q8_0": 1 / 250}[shared_type]
        bound = step * np.abs(b[i].shared).max() + 1e-7
        np.testing.assert_allclose(whole, wanted, rtol=0, atol=bound)
        np.testing.assert_array_equal(a[i].values, b[i].values)
        np.testing.assert_array_equal(a[i].mean, b[i].mean)
        rest = np.setdiff1d(np.arange(exact.size), b[i].positions)
        error = [np.mean((w[rest] - exact[rest]) ** 2) for w in (ffn_values(plain, i), found)]
        assert error[1] < 0.95 * error[0]


def reference_of(model: TinyModel, path: Path, mode: str, *, shared: bool = True) -> Reference:
    """PyTorch with the base that the file means: its dequantized FFNs plus the shared part."""
    reference = Reference(model.text_base, model.srde, model.top_k, mode)
    layers = read_sardine.layers(path)
    for i, ffn in reference.layers.items():
        flat = ffn_values(path, i)
        flat[layers[i].positions] += layers[i].shared * shared
        sizes = [w.numel() for w in ffn.base]
        for w, part in zip(ffn.base, torch.split(torch.from_numpy(flat), sizes), strict=True):
            w.data.copy_(part.view_as(w))
    return reference


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared_type", ["f32", "f16", "q8_0"])
def test_modes_equal_pytorch(ragged: TinyModel, mode: str, shared_type: str) -> None:
    """All three modes add the shared part once, in a batch and token by token."""
    path = compensated(ragged, "extracted", "q8_0", delta_type="f32", shared_type=shared_type)
    expected = reference_of(ragged, path, mode).logits(TOKENS).numpy()
    plain = compensated(ragged, "none", "f16", delta_type="f32")
    with ragged.open(delta_mode=mode) as m:
        unquantized = m.eval(TOKENS)
    with TinyModel(ragged.base, ragged.srde, plain, ragged.top_k).open(delta_mode=mode) as m:
        rounding = nmse(m.eval(TOKENS), unquantized)
    with TinyModel(ragged.base, ragged.srde, path, ragged.top_k).open(delta_mode=mode) as m:
        found = m.eval(TOKENS)
        assert nmse(found, expected) <= 10 * rounding
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
        m.reset()
        single = np.concatenate([m.eval([t]) for t in TOKENS])
        assert nmse(single, found) <= 10 * rounding
        wrong = reference_of(ragged, path, mode, shared=False).logits(TOKENS).numpy()
        assert nmse(found, wrong) > 1000 * rounding


@pytest.mark.parametrize("mode", MODES)
def test_quantized_modes_are_near(blocky: TinyModel, mode: str) -> None:
    """The same on q8_0 matrices, where ggml rounds activations to 8 bits (NMSE near 1e-4)."""
    path = compensated(blocky, "extracted", "q8_0", delta_type="f32", shared_type="f16")
    expected = reference_of(blocky, path, mode).logits(TOKENS).numpy()
    with TinyModel(blocky.base, blocky.srde, path, blocky.top_k).open(delta_mode=mode) as m:
        assert nmse(m.eval(TOKENS), expected) <= 2e-3


def test_options(blocky: TinyModel, tmp_path: Path) -> None:
    """Nothing to compensate in an unquantized file or a GGUF base; unknown names are refused."""
    out = tmp_path / "o.gguf"
    for options in (
        {"outtype": "f16", "compensation": "residual"},
        {"outtype": "f32", "compensation": "extracted"},
        {"outtype": "q8_0", "compensation": "half"},
        {"outtype": "q8_0", "compensation": "extracted", "shared_type": "q4_0"},
    ):
        with pytest.raises(OptionError):
            convert(blocky.base, blocky.srde, out, **options)
        assert not out.exists()
    report = convert(blocky.base, blocky.srde, out, outtype="f16", dry_run=True)
    assert report.compensation == "none"
    source = blocky.gguf.with_name("plain-base.gguf")
    from sardine_gguf.convert import write_base

    write_base(blocky.base, source, "q8_0", force=True)
    assert convert(source, blocky.srde, out, dry_run=True).compensation == "none"
    with pytest.raises(OptionError, match="not quantized here"):
        convert(source, blocky.srde, out, compensation="residual")
