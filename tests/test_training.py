"""The code that trained the bundled example: its fast forward pass against transformers, its optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.train.forward import hidden_states, logits_at
from examples.train.model import SardineModel
from examples.train.muon import Muon, orthogonalize

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-sardine"


@pytest.fixture(scope="module")
def model() -> SardineModel:
    return SardineModel.load(EXAMPLE / "base", EXAMPLE / "srde_weights.pt")


@pytest.mark.parametrize("setting", ["off", "sparse", "expert 3"])
def test_forward_equals_transformers(model: SardineModel, setting: str) -> None:
    """In float32 the same sums in another order; bfloat16 rounds to 2^-9 at each of a few dozen products."""
    model.set_mode("off" if setting == "off" else "sparse")
    model.force_expert(3 if setting == "expert 3" else None)
    ids = torch.randint(36, 1536, (3, 70), generator=torch.Generator().manual_seed(1))
    wanted = torch.zeros(3, 70, dtype=torch.bool)
    wanted[0, 5], wanted[2, 60:] = True, True
    with torch.no_grad():
        expected = model.lm(input_ids=ids, use_cache=False).logits[wanted]
        for dtype, bound in ((torch.float32, 1e-10), (torch.bfloat16, 2e-2)):
            found = logits_at(model.lm, ids, wanted, dtype)
            assert ((found - expected) ** 2).sum() <= bound * (expected**2).sum()
    model.force_expert(None)


def test_forward_refuses_long_texts(model: SardineModel) -> None:
    """Beyond YaRN's original context queries are scaled, which the fast pass leaves out."""
    with pytest.raises(ValueError, match="513 tokens"):
        hidden_states(model.lm, torch.zeros(1, 513, dtype=torch.long), torch.float32)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
def test_orthogonalize(shape: tuple[int, int]) -> None:
    """Singular values near 1, whatever they were; the singular vectors stay."""
    g = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = orthogonalize(g * 1e-3)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.4
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ vh).flatten(), 0) > 0.95


def test_muon_learns() -> None:
    """A linear map is recovered; weight decay alone shrinks what has no gradient but zero."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(8, 12, generator=generator)
    w = torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([w], lr=0.05)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        loss = ((w - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
