"""The router's own logits, kept on request, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import TinyModel, nmse, random_tokens
from reference import Reference
from test_parity import MAX_NMSE, N_TOKENS

TOKENS = random_tokens(N_TOKENS, seed=5)


def test_router_logits(tiny: TinyModel) -> None:
    """Equal to PyTorch's, over several batches, kept only when asked for; choices follow from them."""
    reference = Reference(tiny.base, tiny.srde, tiny.top_k)
    reference.logits(TOKENS)
    expected = torch.stack([reference.layers[i].last_logits for i in sorted(reference.layers)])
    with tiny.open(n_batch=50) as m:
        plain = m.eval(TOKENS)
        with pytest.raises(ValueError, match="keep_router_logits = True"):
            m.router_logits()
        m.reset()
        m.keep_router_logits = True
        np.testing.assert_array_equal(m.eval(TOKENS), plain)
        found, p = m.router_logits(), m.router_probabilities()
        assert found.shape == (3, N_TOKENS, 5)
        assert nmse(found, expected.numpy()) <= MAX_NMSE
        np.testing.assert_allclose(p, torch.softmax(expected, -1).numpy(), atol=1e-5)
        np.testing.assert_array_equal(np.argsort(-found, axis=-1)[..., :3], m.routing()[0])
        assert not m.new_context().keep_router_logits
        m.experts = {"math": 1.0}
        m.eval(TOKENS[:5])
        np.testing.assert_allclose(m.router_logits()[0], found[0, :5], atol=1e-5)
        m.keep_router_logits = False
        m.eval([7])
        with pytest.raises(ValueError, match="no router logits"):
            m.router_logits()
