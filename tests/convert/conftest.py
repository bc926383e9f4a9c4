"""Shared bases and checkpoints, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_checkpoint import srde_checkpoint, tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 model folder: H 64, I 100 (not a multiple of 32), 3 layers."""
    return tiny_base(tmp_path_factory.mktemp("models") / "base", inner=100)


@pytest.fixture(scope="session")
def srde(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for `base`: 6 experts, 2 per token, 2 % of the parameters."""
    return srde_checkpoint(tmp_path_factory.mktemp("srde") / "srde_weights.pt", base)
