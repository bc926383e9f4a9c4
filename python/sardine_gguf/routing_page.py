"""A routing report as one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sardine_gguf.expert_colours import expert_colours
from sardine_gguf.routing_prompts import RoutedPrompt
from sardine_gguf.terminal import clean

MAX_ROUTES = 4_000_000  # expert and weight of a token and layer; about 8 bytes of the page each
WEIGHT_STEPS = 1000

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<noscript>This page draws itself with JavaScript, which is turned off.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(figures: dict[str, Any], routed: Sequence[RoutedPrompt]) -> str:
    """The page.

    Args:
        figures: those of routing_figures.figures.

    Raises:
        ValueError: the texts have more routes than a browser can hold.
    """
    check_size(sum(r.routes.ids.size for r in routed))
    names = [clean(n) for n in figures["experts"]]
    data = {
        **figures,
        "model": clean(Path(figures["model"]).name),
        "experts": names,
        "settings": {clean(k): v for k, v in figures["settings"].items()},
        "groups": [{**g, "group": clean(g["group"])} for g in figures["groups"]],
        "prompts": [
            {**p, "group": clean(p["group"]), "title": clean(p["title"]), **_strip(r)}
            for p, r in zip(figures["prompts"], routed, strict=True)
        ],
        "colours": expert_colours(len(names)),
        "steps": WEIGHT_STEPS,
    }
    style, script = _resource("routing_page.css"), _resource("routing_page.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _PAGE.format(
        policy=html.escape(policy),
        title=html.escape(f"Routing of {data['model']}"),
        style=style,
        script=script,
        data=_inert_json(data),
    )


def check_size(n_routes: int) -> None:
    """Raises ValueError for more routes, tokens x layers x experts a token, than a browser can hold."""
    if n_routes > MAX_ROUTES:
        raise ValueError(
            f"a page of {n_routes:,} routes is too large for a browser, expected at most {MAX_ROUTES:,}: "
            "give shorter texts, or use --json"
        )


def _strip(r: RoutedPrompt) -> dict[str, Any]:
    """Tokens, and their routes flat in the order token, layer, place; weights in steps from 0 to 1."""
    steps = np.rint(r.routes.weights * WEIGHT_STEPS).astype(np.int64)
    return {
        "ids": r.tokens,
        "pieces": [clean(piece) for piece in r.pieces],
        "e": r.routes.ids.transpose(1, 0, 2).ravel().tolist(),
        "w": steps.transpose(1, 0, 2).ravel().tolist(),
    }


def _inert_json(data: Any) -> str:
    """JSON in which nothing can end the script element that holds it or begin another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: no U+2028 either
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _resource(name: str) -> str:
    return (files("sardine_gguf") / name).read_text("utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
