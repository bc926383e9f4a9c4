"""The routing report in a real browser: what it shows is what the router chose, and it asks for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import Sardine, routing_cli
from sardine_gguf.convert import convert

HOSTILE = (
    "</script><img src='http://127.0.0.1:9/x' onerror='document.title=1'><b>&amp;\u202e\x1b[31m"
)
NAMES = ["math", "<img src=x onerror=document.title=2>", "c'\"&lt;", "</script>", "planning"]

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 experts with hostile names, 3 a token, in layers 0 and 2."""
    out = tmp_path_factory.mktemp("page")
    tiny_base(out / "base", inner=100)
    srde_checkpoint(
        out / "srde.pt", out / "base", top_k=3, n_experts=5, density=0.05, layers=[0, 2]
    )
    convert(out / "base", out / "srde.pt", out / "m.gguf", outtype="q8_0", expert_names=NAMES)
    return out / "m.gguf"


@pytest.fixture(scope="module")
def report(model: Path) -> Path:
    """Two texts, one of them hostile."""
    path = model.with_name("report.html")
    texts = ["-p", "one two three\nfour", "-p", HOSTILE]
    assert routing_cli.main(["-m", str(model), *texts, "-o", str(path), "-t", "1"]) == 0
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with browser.browser() as running:
        yield running


class Served:
    """A folder on a local port; `paths` are those that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = []
        served = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                served.paths.append(self.path)
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def served(report: Path) -> Iterator[Served]:
    """The report's folder."""
    s = Served(report.parent)
    yield s
    s.server.shutdown()
    s.server.server_close()


def test_the_page_shows_the_routes_and_asks_for_nothing(
    report: Path, model: Path, chromium: Any, served: Served
) -> None:
    """Heat map, strips, tokens and the detail on hover against routing(); one request: the page."""
    page = chromium.new_page()
    asked, faults = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("console", lambda m: faults.append(m.text))
    page.on("dialog", lambda d: faults.append(d.message))
    address = f"{served.address}/{report.name}"
    page.goto(address)

    with Sardine(model, n_threads=1) as m:
        tokens = m.tokenize("one two three\nfour")
        m.eval(tokens)
        routes = m.routes()
        pieces = [m.detokenize([t], special=True) for t in tokens]

    # The heat map of one text, by its option.
    page.locator("select").select_option("1")
    rows = page.locator("table.heat tr").all()
    assert [r.locator("th").first.inner_text() for r in rows] == ["layer", "0", "2"]
    found = [[float(t.split()[0]) for t in r.locator("td").all_inner_texts()] for r in rows[1:]]
    np.testing.assert_allclose(found, 100 * routes.by_layer(), atol=0.051)
    strongest = rows[1].locator("td").nth(int(routes.by_layer()[0].argmax()))
    assert strongest.evaluate("e => getComputedStyle(e).backgroundColor") not in (
        "",
        "rgba(0, 0, 0, 0)",
    )
    assert rows[0].locator("th").nth(2).inner_text() == NAMES[1]

    # Strips and tokens of each text.
    assert page.locator("canvas.strip").count() == 2
    size = page.locator("canvas.strip").first.evaluate("c => [c.width, c.height]")
    assert size == [len(tokens), 2]
    drawn = page.locator("canvas.strip").first.evaluate(
        """c => {
            const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;
        }"""
    )
    assert drawn > 2
    spans = page.locator(".tokens").first.locator("span")
    shown = [s.replace("\u23ce\n", "\n") for s in spans.all_text_contents()]
    assert shown == pieces

    # Hovering a token, then the strip at another one, tells the choice of every layer.
    def detail() -> list[list[str]]:
        lines = page.locator("aside table.detail td.what").all_inner_texts()
        return [line.split(", ") for line in lines]

    def expected(token: int) -> list[list[str]]:
        return [
            [
                f"{NAMES[e]} {100 * np.rint(1000 * w) / 1000:.0f}"
                for e, w in zip(routes.ids[i, token], routes.weights[i, token], strict=True)
            ]
            for i in range(2)
        ]

    def near(a: list[list[str]], b: list[list[str]]) -> bool:
        pairs = [(x.rsplit(" ", 1), y.rsplit(" ", 1)) for r, s in zip(a, b, strict=True)
                 for x, y in zip(r, s, strict=True)]  # fmt: skip
        return all(x[0] == y[0] and abs(int(x[1]) - int(y[1])) <= 1 for x, y in pairs)

    assert "Point at a token" in page.locator("aside").inner_text()
    spans.nth(3).hover()
    assert near(detail(), expected(3))
    assert f"id {tokens[3]}" in page.locator("aside").inner_text()
    assert NAMES[int(routes.leading()[3])] + " leads" in page.locator("aside").inner_text()
    box = page.locator("canvas.strip").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 5.5 / len(tokens), box["y"] + 2)
    assert near(detail(), expected(5))
    assert spans.nth(5).get_attribute("class") == "on"
    page.mouse.down()  # a click keeps it
    page.mouse.up()
    spans.nth(1).hover()
    assert near(detail(), expected(5))

    assert faults == []
    assert asked == [address]
    assert served.paths == [f"/{report.name}"]
    page.close()


def test_hostile_text_stays_text(report: Path, chromium: Any) -> None:
    """Nothing of it becomes an element, runs, or reorders the line."""
    page = chromium.new_page()
    page.goto(report.as_uri())
    assert page.title() == "Routing of m.gguf"
    assert page.locator("img").count() == 0
    assert page.locator("b").count() == 0
    assert page.locator("script").count() == 2
    text = "".join(page.locator(".tokens").nth(1).locator("span").all_text_contents())
    assert "</script><img src='http://127.0.0.1:9/x' onerror=" in text
    assert "\u202e" not in page.content()
    assert "\x1b" not in page.content()
    page.close()


def test_the_policy_stops_what_a_page_could_ask(
    report: Path, chromium: Any, served: Served
) -> None:
    """Even code put into the page reaches nothing."""
    page = chromium.new_page()
    page.goto(f"{served.address}/{report.name}")
    result = page.evaluate(
        """async (address) => {
            const outcome = await fetch(address + "/secret").then(() => "sent", () => "blocked");
            const image = new Image();
            const loaded = new Promise((r) => { image.onload = image.onerror = (e) => r(e.type); });
            image.src = address + "/pixel";
            const script = document.createElement("script");
            script.textContent = "document.title = 'ran'";
            document.body.appendChild(script);
            return [outcome, await loaded, document.title];
        }""",
        served.address,
    )
    assert result == ["blocked", "error", "Routing of m.gguf"]
    assert served.paths == [f"/{report.name}"]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_both_themes(report: Path, chromium: Any, scheme: str) -> None:
    """Text and paper differ in brightness by WCAG's contrast for text (4.5), tokens on their colours too."""
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 500, "height": 700})
    page.goto(report.as_uri())

    def luminance(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(a: list[float], b: list[float]) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    # Every colour painted on a canvas over the paper, so that the browser mixes it.
    colours = page.evaluate(
        """() => {
            const pen = document.createElement("canvas").getContext("2d");
            const paper = getComputedStyle(document.body).backgroundColor;
            const over = (...colours) => {
                for (const c of [paper, ...colours]) { pen.fillStyle = c; pen.fillRect(0, 0, 1, 1); }
                return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255);
            };
            return [...document.querySelectorAll("p, h1, .tokens span, .heat td")].map((e) => {
                const s = getComputedStyle(e);
                return [over(s.color), over(s.backgroundColor), e.textContent];
            });
        }"""
    )
    assert len(colours) > 40
    for ink, back, text in colours:
        assert contrast(ink, back) >= 4.5, text
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    page.close()
