"""A routing report as a picture: layers and experts, and the shares of each group."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sardine_gguf.expert_colours import expert_colours
from sardine_gguf.terminal import clean

MAX_BARS = 24  # groups that get a bar each
MAX_NUMBERS = 12  # layers and experts up to which shares are written out
_INK = "#333333"


def picture(figures: dict[str, Any]) -> bytes:
    """PNG of what routing_figures.figures gave. Raises ImportError without matplotlib."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    names = [_short(n) for n in figures["experts"]]
    rows = figures["groups"][:MAX_BARS]
    height = min(14.0, max(3.4, 1.6 + 0.28 * max(len(rows), len(figures["layers"]))))
    with mpl.rc_context(style), warnings.catch_warnings():
        # What its font lacks, as emoji, is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(13, height), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        heat, bars = figure.subplots(1, 2, width_ratios=(1.1, 1))
        _draw_heat(figure, heat, np.array(figures["all"]["by_layer"]), figures["layers"], names)
        _draw_bars(bars, rows, names)
        more = len(figures["groups"]) - len(rows)
        figure.suptitle(
            f"{_short(Path(figures['model']).name, 60)}: {figures['experts_per_token']} of {len(names)} "
            f"experts a token, {figures['all']['tokens']:,} tokens, mode {figures['delta_mode']}"
            + (f"; {more} more groups are not drawn" if more else ""),
            fontsize=11,
        )
        out = io.BytesIO()
        # No date or version in it: the same figures give the same picture.
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw_heat(figure: Any, axes: Any, shares: Any, layers: list[int], names: list[str]) -> None:
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, aspect="auto")
    axes.set_title("weight by layer and expert (%)")
    axes.set_ylabel("layer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = -(-len(names) // 24)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=30, ha="right")
    step = -(-len(layers) // 20)
    axes.set_yticks(range(0, len(layers), step), [str(n) for n in layers[::step]])
    if len(names) <= MAX_NUMBERS and len(layers) <= MAX_NUMBERS:
        middle = 0.6 * shares.max()
        for i, row in enumerate(shares):
            for j, value in enumerate(row):
                ink = "white" if value > middle else _INK
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink)
    figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)


def _draw_bars(axes: Any, rows: list[dict[str, Any]], names: list[str]) -> None:
    at = np.arange(len(rows))
    left = np.zeros(len(rows))
    shares = 100 * np.array([row["shares"] for row in rows])
    for e, colour in enumerate(expert_colours(len(names))):
        label = names[e] if e < MAX_NUMBERS else None
        axes.barh(at, shares[:, e], 0.72, left=left, color=colour, label=label)
        left += shares[:, e]
    axes.set_yticks(at, [_short(row["group"], 24) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title("share of each expert (%)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=8)


def _short(text: str, length: int = 14) -> str:
    # A dollar sign would begin matplotlib's mathematics.
    line = " ".join(clean(text).split())
    cut = line if len(line) <= length else line[: length - 1] + "…"
    return cut.replace("$", r"\$")
