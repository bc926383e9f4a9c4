"""Models of these tests, converted once."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import TinyModel, make_model


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for converted models."""
    return tmp_path_factory.mktemp("python_api")


@pytest.fixture(scope="session")
def tiny(workshop: Path) -> TinyModel:
    """Random weights, five experts, float32."""
    return make_model(
        workshop / "tiny", top_k=3, base={"inner": 100}, srde={"n_experts": 5, "density": 0.05}
    )
