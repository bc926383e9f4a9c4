"""Shares of experts by prompt, group and layer, as numbers and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sardine_gguf.model import Sardine
from sardine_gguf.routes import AGREEMENTS, Agreement, Routes, joined
from sardine_gguf.routing_prompts import RoutedPrompt
from sardine_gguf.terminal import clean_line


def by_group(routed: Sequence[RoutedPrompt]) -> dict[str, Routes]:
    """The routes of all tokens of each group, in order of appearance."""
    parts: dict[str, list[Routes]] = {}
    for r in routed:
        parts.setdefault(r.prompt.group, []).append(r.routes)
    return {name: joined(list(routes)) for name, routes in parts.items()}


def figures(model: Sardine, routed: Sequence[RoutedPrompt]) -> dict[str, Any]:
    """What --json prints: shares from 0 to 1 in the order of `experts`."""

    def of(routes: Routes) -> dict[str, Any]:
        return {
            "tokens": routes.n_tokens,
            "shares": _rounded(routes.shares()),
            "by_layer": _rounded(routes.by_layer()),
        }

    return {
        "model": model.model_path,
        "delta_mode": model.delta_mode,
        "settings": model.experts,
        "experts": model.expert_names,
        "experts_per_token": int(routed[0].routes.ids.shape[2]),
        "layers": list(model.model.experts["layers"]),
        "all": of(joined([r.routes for r in routed])),
        "groups": [{"group": name, **of(r)} for name, r in by_group(routed).items()],
        "prompts": [
            {"group": r.prompt.group, "title": r.prompt.title, **of(r.routes)} for r in routed
        ],
    }


def _rounded(values: Any) -> Any:
    return np.round(values, 6).tolist()


def share_lines(names: Sequence[str], groups: Sequence[tuple[str, Routes]]) -> list[str]:
    """A line for each named group: the share of each expert in percent."""
    titles = [clean_line(name)[:40] for name, _ in groups]
    wide = max(5, *(len(t) for t in titles))
    columns = [clean_line(n)[:12] for n in names]
    widths = [max(7, len(c)) for c in columns]
    head = "  ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
    lines = [f"{'':{wide}}  tokens  {head}"]
    for title, (_, routes) in zip(titles, groups, strict=True):
        shares = "  ".join(
            f"{100 * s:{w - 2}.1f} %" for s, w in zip(routes.shares(), widths, strict=True)
        )
        lines.append(f"{title:{wide}}  {routes.n_tokens:6,}  {shares}")
    return lines


_TITLES = {
    "same_first": "same first expert",
    "same_set": "same experts",
    "overlap": "experts in common",
    "weight": "weight in common",
}


def agreement_lines(layers: Sequence[int], found: Agreement) -> list[str]:
    """The table that --compare prints, in percent."""
    head = f"{'layer':>5}" + "".join(f"  {_TITLES[name]:>17}" for name in AGREEMENTS)
    lines = [head]
    for row, layer in enumerate(layers):
        lines.append(
            f"{layer:5}"
            + "".join(f"  {100 * getattr(found, name)[row]:15.2f} %" for name in AGREEMENTS)
        )
    total = found.total()
    lines.append("  all" + "".join(f"  {100 * total[name]:15.2f} %" for name in AGREEMENTS))
    return lines


def agreement_figures(layers: Sequence[int], found: Agreement) -> dict[str, Any]:
    """The same for --json, from 0 to 1."""
    return {
        "tokens": found.n_tokens,
        "total": {name: round(value, 6) for name, value in found.total().items()},
        "layers": [
            {"layer": layer, **{n: round(float(getattr(found, n)[row]), 6) for n in AGREEMENTS}}
            for row, layer in enumerate(layers)
        ],
    }
