"""Values, positions and number types against plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_checkpoint import srde_layers, torch_positions, torch_values
from sardine_gguf import errors
from sardine_gguf.convert import arrays, native, values
from sardine_gguf.convert.checkpoint import read_checkpoint
from sardine_gguf.convert.positions import largest, read_positions
from sardine_gguf.convert.srde_layer import check_shapes

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def saved(tmp_path: Path, layers: dict) -> list:
    torch.save({"srde_layers": layers, "config": {"top_k": 2}}, tmp_path / "s.pt")
    return read_checkpoint(tmp_path / "s.pt", 3).layers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_values_are_those_of_pytorch(base, tmp_path, dtype, threads, monkeypatch):
    monkeypatch.setattr(values, "CHUNK", 37)
    layers = srde_layers(base, dtype=dtype, layers=[1], n_atoms=16, density=0.05)
    (layer,) = saved(tmp_path, layers)
    check_shapes(layer, 64, 100)
    order = np.random.default_rng(0).permutation(layer.n)
    found = values.expert_values(layer, order, threads)
    expected = torch_values(layers["1"]).numpy()[:, order]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
    as_double = {k: v.double() for k, v in layers["1"].items()}
    mix = torch.softmax(as_double["vocabulary.expert_atom_weights"], -1)
    exact = torch.stack(
        [
            mix[e]
            @ as_double["vocabulary.atoms"]
            * torch.sigmoid(as_double[f"experts.{e}.importance"])
            for e in range(6)
        ]
    ).float()
    np.testing.assert_allclose(found, exact.numpy()[:, order], rtol=1.3e-7)


def test_extreme_logits_are_no_error(base, tmp_path):
    layers = srde_layers(base, layers=[0])
    layers["0"]["experts.0.importance"][:4] = torch.tensor([1e30, -1e30, 800.0, -800.0])
    layers["0"]["vocabulary.expert_atom_weights"][1, 0] = 1e30
    (layer,) = saved(tmp_path, layers)
    found = values.expert_values(layer, np.arange(layer.n), 1)
    np.testing.assert_allclose(found, torch_values(layers["0"]).numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_from_logits(base, tmp_path, dtype):
    layers = srde_layers(base, layers=[0], mask_logits=True, dtype=dtype)
    # bf16 logits have many equal ones: the lower index comes first.
    (layer,) = saved(tmp_path, layers)
    found = read_positions(layer, 64, 100)
    np.testing.assert_array_equal(found, torch_positions(layers["0"]).numpy())


def test_positions_from_equal_logits(base, tmp_path):
    layers = srde_layers(base, layers=[0], mask_logits=True, positions=5)
    logits = torch.zeros(3 * 64 * 100)
    logits[100], logits[50] = 1.0, float("-inf")
    layers["0"]["mask_selector.mask_logits"] = logits
    (layer,) = saved(tmp_path, layers)
    assert read_positions(layer, 64, 100).tolist() == [100, 0, 1, 2, 3]


def test_positions_from_logits_of_64_bits(base, tmp_path):
    """They are compared as they are: many of these are the same number in 32 bits."""
    layers = srde_layers(base, layers=[0], mask_logits=True, dtype=torch.float64)
    total = 3 * 64 * 100
    steps = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    logits = 1.0 + steps.double() * 2.0**-40
    assert logits.float().unique().numel() == 1
    layers["0"]["mask_selector.mask_logits"] = logits
    (layer,) = saved(tmp_path, layers)
    expected = torch.argsort(logits, descending=True)[: layer.n]
    np.testing.assert_array_equal(read_positions(layer, 64, 100), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_positions_of_other_integers(base, tmp_path, dtype):
    layers = srde_layers(base, layers=[0])
    wanted = layers["0"]["mask_selector.indices"]
    layers["0"]["mask_selector.indices"] = wanted.to(dtype)
    (layer,) = saved(tmp_path, layers)
    assert read_positions(layer, 64, 100).tolist() == wanted.tolist()


def test_strided_and_shared_tensors(base, tmp_path):
    layers = srde_layers(base, layers=[0])["0"]
    n = layers["vocabulary.atoms"].shape[1]
    wide = torch.randn(n, 6).T.contiguous().T  # a transposed view: strides (1, n)
    big = torch.randn(3, n)
    layers["vocabulary.atoms"] = wide[:, :4].T
    layers["experts.0.importance"] = big[1]
    layers["experts.1.importance"] = big[2]
    for e in range(6):
        del layers[f"experts.{e}.vocabulary.atoms"]
    (layer,) = saved(tmp_path, {"0": layers})
    found = values.expert_values(layer, np.arange(n), 1)
    np.testing.assert_allclose(found, torch_values(layers).numpy(), rtol=2e-6, atol=1e-7)


def test_parameters_and_state_dicts(base, tmp_path):
    from collections import OrderedDict

    layers = srde_layers(base, layers=[0])["0"]
    plain = torch_values(layers)
    state = OrderedDict(layers)
    state["vocabulary.atoms"] = torch.nn.Parameter(state["vocabulary.atoms"])
    state._metadata = OrderedDict({"": {"version": 1}})
    for e in range(6):
        del state[f"experts.{e}.vocabulary.atoms"]
    (layer,) = saved(tmp_path, OrderedDict({"0": state}))
    found = values.expert_values(layer, np.arange(layer.n), 1)
    np.testing.assert_allclose(found, plain.numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(base, tmp_path, protocol):
    layers = srde_layers(base, layers=[2])
    torch.save({"srde_layers": layers}, tmp_path / "p.pt", pickle_protocol=protocol)
    (layer,) = read_checkpoint(tmp_path / "p.pt", 3).layers
    assert layer.index == 2
    np.testing.assert_array_equal(layer.router.float32(), layers["2"]["router.gate.weight"].numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_stored_floats(tmp_path, dtype):
    tensor = torch.cat([torch.randn(500) * 10.0**e for e in (-6, 0, 4)]).to(dtype)
    raw = tensor.view(torch.int16).numpy() if dtype == torch.bfloat16 else tensor.numpy()
    name = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}[
        str(dtype).split(".")[1]
    ]
    raw = raw.view(arrays.DTYPES[name].numpy)
    np.testing.assert_array_equal(
        arrays.to_float32(raw, arrays.DTYPES[name]), tensor.float().numpy()
    )
    np.testing.assert_array_equal(
        arrays.to_float64(raw, arrays.DTYPES[name]), tensor.double().numpy()
    )


@given(
    st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf]), max_size=60),
    st.integers(1, 20),
    st.floats(0, 1),
)
def test_largest_in_chunks(logits, step, share):
    """Against a stable sort of everything."""
    x = np.array(logits, np.float32)
    n = round(share * x.size)
    found = largest([x[i : i + step] for i in range(0, x.size, step)], n)
    np.testing.assert_array_equal(found, np.argsort(-x, kind="stable")[:n])


def test_16_bit_rounding_is_that_of_torch_and_numpy():
    bits = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x = np.ascontiguousarray(x[np.abs(x) <= native.largest_value("bf16")])
    expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    found = native.quantize(x.reshape(1, -1), "bf16", 1).view(np.uint16).reshape(-1)
    np.testing.assert_array_equal(found, expected)
    half = np.ascontiguousarray(x[np.abs(x) <= 65504])
    found = native.quantize(half.reshape(1, -1), "f16", 1).view(np.float16).reshape(-1)
    np.testing.assert_array_equal(half.astype(np.float16), found)


def test_errors_are_value_errors():
    assert issubclass(errors.FormatError, ValueError)
