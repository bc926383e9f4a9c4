"""--plot: one picture of where the positions lie, how large the values are, how alike the experts are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sardine_gguf.inspect_facts import FileFacts
from sardine_gguf.output_file import replaced_file
from sardine_gguf.packed_file import MATRICES, PackedFile, PackedMatrix
from sardine_gguf.units import size_text

Float64 = NDArray[np.float64]
CHUNK_NUMBERS = 1 << 22  # float64 at a time
BINS = 81  # odd, so that one is centred on 0
MAX_LINES = 10  # experts with a line of their own
MAX_NUMBERS = 10  # experts whose similarities are written out
_COLOURS = {"gate": "#2f6f8f", "up": "#e0a458", "down": "#7a9e59"}
# Told apart also by those who do not see all colours (after Paul Tol's schemes).
_LINES = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#222222",
    "#ee7733", "#009988",
)  # fmt: skip
_INK = "#333333"


def expert_similarity(file: PackedFile) -> Float64:
    """Cosine of each pair of experts' values over a layer's positions, averaged over layers; [E, E].

    Layers in which either expert is zero are left out; without any layer it is NaN.
    """
    total = np.zeros((file.n_experts, file.n_experts))
    layers = np.zeros_like(total)
    for layer in file.layers:
        gram = np.zeros_like(total)
        for name in MATRICES:
            packed = file.matrix(layer, name)
            if packed:
                for values in _pieces(packed):
                    gram += values @ values.T
        norm = np.sqrt(np.diag(gram))
        both = np.outer(norm, norm)
        total += np.divide(gram, both, out=np.zeros_like(gram), where=both > 0)
        layers += both > 0
    return np.divide(total, layers, out=np.full_like(total, np.nan), where=layers > 0)


def value_histogram(file: PackedFile) -> tuple[Float64, NDArray[np.int64]]:
    """Edges [BINS + 1], symmetric about 0, and how many values of each expert lie between; [E, BINS]."""
    largest = 0.0
    for _, _, packed in file.matrices():
        largest = max(largest, *(float(np.abs(v).max(initial=0.0)) for v in _pieces(packed)))
    edges = np.linspace(-1, 1, BINS + 1) * (largest or 1.0)
    counts = np.zeros((file.n_experts, BINS), np.int64)
    for _, _, packed in file.matrices():
        for values in _pieces(packed):
            for e, row in enumerate(values):
                counts[e] += np.histogram(row, edges)[0]
    return edges, counts


def _pieces(packed: PackedMatrix) -> Any:
    """Values [E, m] of some positions at a time."""
    n_experts = len(packed.scale)
    step = max(32, CHUNK_NUMBERS // n_experts // 32 * 32)
    for start in range(0, packed.n, step):
        yield np.stack([packed.values(e, start, start + step) for e in range(n_experts)])


def draw(file: PackedFile, facts: FileFacts, path: Path) -> None:
    """Writes the picture, which replaces another of that name.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert facts.experts
    style: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.edgecolor": "#999999",
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(13, 4.4), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        places, histogram, similarity = figure.subplots(1, 3, width_ratios=(1.15, 1.1, 1))
        _draw_positions(places, facts)
        _draw_values(histogram, file, facts.experts.names)
        _draw_similarity(figure, similarity, expert_similarity(file), facts.experts.names)
        x, b = facts.experts, facts.base
        figure.suptitle(
            f"{_short(Path(facts.file).name, 60)}: {_short(b.name, 40)}, {b.layers} layers of "
            f"{b.embedding_length}, {x.count} experts, {x.positions:,} positions ({x.density:.2%}), "
            f"{size_text(facts.size)}",
            fontsize=11,
        )
        picture = io.BytesIO()
        # No date or version in it: the same file gives the same picture.
        figure.savefig(picture, format="png", metadata={"Software": None})
    with replaced_file(path) as append:
        append(picture.getvalue())


def _draw_positions(axes: Any, facts: FileFacts) -> None:
    assert facts.experts
    layers = facts.experts.layers
    at = np.arange(len(layers))
    # Bars beside each other while they can be told apart, then on top of each other.
    beside = len(layers) <= 12
    floor = np.zeros(len(layers))
    for i, name in enumerate(MATRICES):
        share = np.array([100 * layer.matrices[name].density for layer in layers])
        if beside:
            axes.bar(at + (i - 1) * 0.27, share, 0.25, label=name, color=_COLOURS[name])
        else:
            axes.bar(at, share / 3, 0.85, bottom=floor, label=name, color=_COLOURS[name])
            floor += share / 3
    axes.set_title("changed parameters")
    axes.set_xlabel("layer")
    axes.set_ylabel("% of the matrix" if beside else "% of the layer's FFN")
    step = -(-len(layers) // 12)
    axes.set_xticks(at[::step], [str(layer.layer) for layer in layers[::step]])
    axes.set_ylim(0, max(axes.get_ylim()[1] * 1.18, 1e-9))
    axes.legend(frameon=False, ncols=3, loc="upper center")


def _draw_values(axes: Any, file: PackedFile, names: list[str]) -> None:
    edges, counts = value_histogram(file)
    lines = list(zip(names, counts, strict=True))
    if len(lines) > MAX_LINES:
        lines = [(f"all {len(names)} experts", counts.sum(axis=0))]
    for (name, row), colour in zip(lines, _LINES, strict=False):
        axes.stairs(
            np.maximum(row, 0.5), edges, label=_short(name, 16), color=colour, linewidth=1.1
        )
    axes.set_yscale("log")
    top = max(1, int(max(row.max() for _, row in lines)))
    axes.set_ylim(0.7, top ** (1 + 0.055 * -(-len(lines) // 3)) * 2)
    axes.set_title("values of the experts")
    axes.set_xlabel("value")
    axes.set_ylabel("number of values")
    axes.legend(frameon=False, ncols=3, loc="upper center", fontsize=8, handlelength=1.2)


def _draw_similarity(figure: Any, axes: Any, similarity: Float64, names: list[str]) -> None:
    image = axes.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title("how alike the experts are (cosine)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = -(-len(names) // 24)
    ticks = range(0, len(names), step)
    labels = [_short(names[i]) for i in ticks]
    if len(names) <= MAX_NUMBERS:
        axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks([])
        axes.set_xlabel("the experts in the same order")
    axes.set_yticks(ticks, labels)
    if len(names) <= MAX_NUMBERS:
        for i, row in enumerate(similarity):
            for j, value in enumerate(row):
                ink = "white" if abs(value) > 0.6 else _INK
                text = f"{value:.2f}".replace("-0.00", "0.00")
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)


def _short(text: str, length: int = 12) -> str:
    # A dollar sign would begin matplotlib's mathematics.
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return cut.replace("$", r"\$")
