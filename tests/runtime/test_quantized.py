"""Quantized files stay near the f32 one, each within bounds from the rounding of its type.

The measure is the mean KL divergence, about half of the squared error of the logits (their variance under the
distribution). This model's logits have a standard deviation near 1, so relative errors r of the weights, of
which each of the 7 matrices of 2 layers adds one, give KL of about 14 r^2 / 2, r being 2^-12 for f16 and
roughly 0.006 for q8_0 and 0.08 for q4_k_m. The bounds take ten times that, and 0.05 for each token and layer
where two router scores lie so near that other experts are chosen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import kl_divergence, make_model, random_tokens
from quant_report import HEADER, TYPES, Row, main, report

KL_BOUNDS = {
    ("f32", "f16"): 70 * 2.0**-24,
    ("f32", "q8_0"): 70 * 0.006**2,
    ("f16", "f16"): 70 * 2.0**-22,  # activations are f16 too
    ("f16", "q8_0"): 70 * 0.006**2,
    ("q8_0", "q8_0"): 70 * 2 * 0.006**2,
    ("q4_k_m", "q8_0"): 70 * 0.08**2,
}


@pytest.fixture(scope="module")
def rows(workshop: Path) -> dict[tuple[str, str], Row]:
    """The report on a random model whose rows are whole K-quant blocks."""
    folder = workshop / "quantized"
    base = {"hidden": 256, "inner": 512, "layers": 2, "std": 0.06}
    model = make_model(folder, base=base, srde={"n_experts": 6, "density": 0.01})
    found = report(model.base, model.srde, [random_tokens(200, seed) for seed in (1, 2)], folder)
    print("\n" + HEADER)
    for row in found:
        print(row.markdown())
    return {(r.out_type, r.delta_type): r for r in found}


def test_f32_is_exact(rows: dict[tuple[str, str], Row]) -> None:
    """The f32 file against itself."""
    exact = rows["f32", "f32"]
    assert exact.mean_kl == exact.p99_kl == 0
    assert exact.same_top == exact.same_experts == 1


@pytest.mark.parametrize("types", TYPES[1:], ids="-".join)
def test_within_bounds(rows: dict[tuple[str, str], Row], types: tuple[str, str]) -> None:
    """KL, agreement and size."""
    row = rows[types]
    assert 0 < row.mean_kl <= KL_BOUNDS[types] + 2 * 0.05 * (1 - row.same_experts)
    assert 0 < row.p99_kl < 1
    # The logits of random weights lie near each other: a tenth of their spread exchanges many.
    floor = 0.4 if types[0] == "q4_k_m" else 0.85
    assert row.same_top >= floor
    assert row.same_experts >= floor


def test_order(rows: dict[tuple[str, str], Row]) -> None:
    """Fewer bits give smaller files and larger errors."""
    names = [("f32", "f32"), ("f16", "q8_0"), ("q8_0", "q8_0"), ("q4_k_m", "q8_0")]
    assert [rows[n].size for n in names] == sorted((rows[n].size for n in names), reverse=True)
    assert [rows[n].mean_kl for n in names] == sorted(rows[n].mean_kl for n in names)


def test_kl_divergence() -> None:
    """Against the definition, on a case with a known value."""
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(kl_divergence(np.log(p) + 7, np.log(q) - 3), expected)


def test_script(workshop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The command prints a line for each pair of types."""
    folder = workshop / "script"
    model = make_model(folder, base={"layers": 1}, srde={"n_experts": 3})
    (tmp_path / "t.txt").write_text("the rain is another train on the north" * 8)
    for extra in ([], ["--text", str(tmp_path / "t.txt")]):
        arguments = [str(model.base), str(model.srde), "--tokens", "64", "--chunk", "32"]
        assert main([*arguments, *extra]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2 + len(TYPES)
