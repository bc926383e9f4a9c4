"""The runtime's logits and routes against PyTorch on transformers' Ministral 3, all in float32.

Bound: both sides round about 20 dependent sums a layer to float32 (relative error 6e-8 each) in other
orders; three layers give an NMSE near 1e-12. The bound leaves a factor of 1000 for other processors, and is
a million times below what the experts change (see `MIN_EFFECT`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_checkpoint import YARN
from models import TinyModel, make_model, nmse, random_tokens
from reference import Reference

MAX_NMSE = 1e-9
MIN_EFFECT = 1e-3
N_TOKENS = 230  # 3.6 times YaRN's original context of 64


@dataclass(frozen=True)
class Case:
    """Options of one model."""

    top_k: int = 2
    base: dict[str, Any] = field(default_factory=dict)
    srde: dict[str, Any] = field(default_factory=dict)
    out: dict[str, Any] = field(default_factory=dict)
    modes: tuple[str, ...] = ("sparse",)


def rope(**changes: Any) -> dict[str, Any]:
    """YARN with changes; None removes a parameter."""
    return {k: v for k, v in {**YARN, **changes}.items() if v is not None}


ALL_MODES = ("sparse", "gain", "off")
CASES = {
    "e5_k3_inner100": Case(3, {"inner": 100}, {"n_experts": 5}, modes=ALL_MODES),
    "inner97": Case(2, {"inner": 97}, {"n_experts": 4}),
    "some_layers": Case(2, {"layers": 4}, {"layers": [0, 2]}, modes=ALL_MODES),
    "last_layer_only": Case(2, {}, {"layers": [2]}, modes=("sparse", "gain")),
    "tied": Case(2, {"tied": True}),
    "one_expert": Case(1, {}, {"n_experts": 1}, modes=("sparse", "gain")),
    "k1_of_6": Case(1),
    "k_is_e": Case(4, {}, {"n_experts": 4}, modes=("sparse", "gain")),
    "with_base_ffn": Case(2, {}, {"with_base_ffn": True}),
    "without_copies": Case(2, {}, {"duplicates": False}),
    "module_prefix": Case(2, {}, {"module_prefix": True}),
    "integer_keys": Case(2, {}, {"int_keys": True}),
    "bf16": Case(2, {"dtype": torch.bfloat16}, {"dtype": torch.bfloat16}, modes=("sparse", "gain")),
    "f16": Case(2, {"dtype": torch.float16}, {"dtype": torch.float16}),
    "mask_logits": Case(2, {}, {"mask_logits": True}),
    "wrapped_old": Case(2, {"wrapped": "old"}),
    "wrapped_new": Case(2, {"wrapped": "new"}),
    "blocks_16": Case(2, {"inner": 100}, {}, {"block_columns": 16}),
    "blocks_33": Case(2, {"inner": 97}, {}, {"block_columns": 33}),
    "blocks_1": Case(2, {"inner": 33, "hidden": 32}, {"density": 0.3}, {"block_columns": 1}),
    "dense_half": Case(3, {"hidden": 32, "inner": 40}, {"density": 0.5}, {"block_columns": 16}),
    "heads_8_1": Case(2, {"heads": 8, "heads_kv": 1, "head_dim": 8}),
    "head_dim_24": Case(2, {"heads": 2, "heads_kv": 2, "head_dim": 24}),
    "yarn_no_all_dim": Case(2, {"rope": rope(mscale_all_dim=None)}),
    "yarn_no_mscale": Case(2, {"rope": rope(mscale_all_dim=None, mscale=None)}),
    "yarn_mscales_differ": Case(2, {"rope": rope(mscale=0.5, mscale_all_dim=0.25)}),
    "yarn_attention_factor": Case(2, {"rope": rope(attention_factor=1.3)}),
    "yarn_betas": Case(2, {"rope": rope(beta_fast=16.0, beta_slow=2.0, factor=16.0)}),
    "rope_default": Case(2, {"rope": {"rope_type": "default", "rope_theta": 10000.0}}),
    "rope_default_beta": Case(
        2,
        {
            "rope": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "original_max_position_embeddings": 64,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "beta_0": Case(2, {"rope": rope(llama_4_scaling_beta=0.0)}),
    "no_beta": Case(2, {"rope": rope(llama_4_scaling_beta=None)}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, workshop: Path) -> tuple[TinyModel, Case]:
    """Each case's model."""
    c = CASES[request.param]
    srde = {"density": 0.05, **c.srde}
    model = make_model(workshop / request.param, top_k=c.top_k, base=c.base, srde=srde, out=c.out)
    return model, c


def reference_logits(
    model: TinyModel, mode: str, tokens: list[int]
) -> tuple[np.ndarray, Reference]:
    """The reference and its logits [n_tokens, n_vocab]."""
    reference = Reference(model.text_base, model.srde, model.top_k, mode)
    return reference.logits(tokens).numpy(), reference


def test_logits_equal_pytorch(case: tuple[TinyModel, Case]) -> None:
    """NMSE, top-1 and, where there is routing, the same experts with the same weights."""
    model, c = case
    tokens = random_tokens(N_TOKENS)
    for mode in c.modes:
        expected, reference = reference_logits(model, mode, tokens)
        with model.open(delta_mode=mode) as m:
            found = m.eval(tokens)
            assert found.dtype == np.float32
            assert nmse(found, expected) <= MAX_NMSE
            np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
            if mode == "off":
                continue
            ids, weights = m.routing()
        expected_ids, expected_weights = (t.numpy() for t in reference.routing())
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=1e-5)


def test_experts_change_the_logits(tiny: TinyModel) -> None:
    """The comparison above can fail: each mode is far from the others, and experts do vary."""
    tokens = random_tokens(N_TOKENS)
    logits = {}
    for mode in ALL_MODES:
        with tiny.open(delta_mode=mode) as m:
            logits[mode] = m.eval(tokens)
            if mode == "sparse":
                ids, weights = m.routing()
    assert nmse(logits["sparse"], logits["off"]) > MIN_EFFECT
    assert nmse(logits["gain"], logits["off"]) > MIN_EFFECT
    assert nmse(logits["sparse"], logits["gain"]) > MIN_EFFECT
    for layer_ids in ids:
        assert len({tuple(sorted(t)) for t in layer_ids.tolist()}) > 3
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (np.diff(weights, axis=-1) <= 0).all()


@pytest.mark.parametrize("change", ["values", "k", "positions"])
def test_a_wrong_reference_is_noticed(tiny: TinyModel, change: str) -> None:
    """Small mistakes in the maths exceed the bound."""
    tokens = random_tokens(N_TOKENS)
    reference = Reference(tiny.base, tiny.srde, 2 if change == "k" else tiny.top_k)
    for ffn in reference.layers.values():
        if change == "values":
            ffn.values *= 1.001
        elif change == "positions":
            ffn.positions = (ffn.positions + 1) % sum(w.numel() for w in ffn.base)
    with tiny.open() as m:
        assert nmse(m.eval(tokens), reference.logits(tokens).numpy()) > 10 * MAX_NMSE


@pytest.mark.parametrize("mode", ["sparse", "gain"])
def test_no_positions_is_the_base(workshop: Path, mode: str) -> None:
    """A checkpoint whose mask is empty changes nothing, to the bit."""
    model = make_model(workshop / f"n0-{mode}", srde={"positions": 0})
    tokens = random_tokens(80)
    with model.open(delta_mode=mode) as a, model.open(delta_mode="off") as b:
        np.testing.assert_array_equal(a.eval(tokens), b.eval(tokens))
        assert a.routing()[0].shape == (3, 80, 2)


def test_gain_with_one_matrix_only(workshop: Path, tiny: TinyModel) -> None:
    """The mean runs over all positions, also when they lie in one matrix; others have no tensors."""
    saved = torch.load(tiny.srde, weights_only=True)
    for layer in saved["srde_layers"].values():
        n = layer["mask_selector.indices"].numel()
        layer["mask_selector.indices"] = torch.arange(n) + 2 * 64 * 100  # all in down
    folder = workshop / "down_only"
    folder.mkdir(exist_ok=True)
    torch.save(saved, folder / "srde.pt")
    model = TinyModel(tiny.base, folder / "srde.pt", folder / "model.gguf", tiny.top_k)
    model.converted("model.gguf", outtype="f32", delta_type="f32", force=True)
    tokens = random_tokens(100)
    for mode in ("sparse", "gain"):
        expected, _ = reference_logits(model, mode, tokens)
        with model.open(delta_mode=mode) as m:
            names = {t.name for t in m.model.file.tensors}
            assert nmse(m.eval(tokens), expected) <= MAX_NMSE
    assert "blk.0.ffn_down_delta.col" in names
    assert "blk.0.ffn_up_delta.col" not in names


def test_half_precision_deltas_stay_close(tiny: TinyModel) -> None:
    """f16 values have 11 bits (relative error 2^-12), q8_0 values 8 bits of a block's largest one."""
    tokens = random_tokens(N_TOKENS)
    expected, _ = reference_logits(tiny, "sparse", tokens)
    effect = MIN_EFFECT
    for kind, share in (("f16", 2.0**-20), ("q8_0", 2.0**-10)):
        path = tiny.converted(f"deltas-{kind}.gguf", outtype="f32", delta_type=kind)
        model = TinyModel(tiny.base, tiny.srde, path, tiny.top_k)
        with model.open() as m, tiny.open(delta_mode="off") as off:
            found = m.eval(tokens)
            effect = nmse(off.eval(tokens), expected)
        # Errors of the values are small beside the values, and so is their effect; 16 is slack.
        assert nmse(found, expected) <= 16 * share * effect
