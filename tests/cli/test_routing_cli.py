"""sardine-routing: figures against the API, agreement of two files, outputs, exit codes."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf import FormatError, Sardine, routing_cli, routing_page
from sardine_gguf.convert import convert, write_base
from sardine_gguf.expert_colours import expert_colours, sgr_colour
from sardine_gguf.routing_page import _inert_json
from sardine_gguf.routing_prompts import read_prompts

TEXTS = ("one two three", "the rain in Spain stays mainly")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f32.gguf and q4.gguf of one model with experts in layers 0 and 2; base.gguf; other.gguf."""
    out = tmp_path_factory.mktemp("routing")
    tiny_base(out / "base", inner=256, hidden=256)
    srde = srde_checkpoint(out / "srde.pt", out / "base", layers=[0, 2], n_experts=5, density=0.05)
    convert(out / "base", srde, out / "f32.gguf", outtype="f32")
    convert(out / "base", srde, out / "q4.gguf", outtype="q4_0")
    convert(out / "base", srde, out / "experts.gguf", adapter=True)
    write_base(out / "base", out / "base.gguf", "q8_0")
    other = srde_checkpoint(out / "s2.pt", out / "base", layers=[0, 1], n_experts=5, density=0.05)
    convert(out / "base", other, out / "other.gguf", outtype="f32")
    (out / "a.txt").write_text(TEXTS[0])
    (out / "b.json").write_text(json.dumps({"x": list(TEXTS), "y": TEXTS[1]}))
    (out / "empty.txt").touch()
    (out / "twice.json").write_text('{"x": "a", "y": "b", "x": "c"}')
    (out / "latin1.txt").write_bytes(b"caf\xe9")
    (out / "not.json").write_text("[1, 2")
    (out / "numbers.json").write_text('{"x": [1]}')
    (out / "list.json").write_text('["a"]')
    (out / "deep.json").write_text("[" * 100_000)
    return out


def run(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[int, str, str]:
    """Exit code, standard output and error. A leading @ names a file of the folder."""
    given = [str(folder / a[1:]) if a.startswith("@") else a for a in args]
    code = routing_cli.main(["-t", "1", *given])
    out = capsys.readouterr()
    return code, out.out, out.err


def direct(path: Path, text: str, **options: Any) -> Any:
    """The routes of a text by the API."""
    with Sardine(path, n_threads=1, **options) as m:
        m.eval(m.tokenize(text))
        return m.routes()


def test_figures(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Of texts, groups and all, against the API; -f, -p and --prompts together."""
    code, out, _ = run(
        capsys, folder, "-m", "@f32.gguf", "-f", "@a.txt", "-p", TEXTS[1], "--prompts", "@b.json",
        "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    routes = [direct(folder / "f32.gguf", t) for t in TEXTS]
    assert found["experts"] == ["math", "logic", "code", "science", "planning"]
    assert found["layers"] == [0, 2]
    assert [(p["group"], p["title"]) for p in found["prompts"]] == [
        ("a.txt", "a.txt"), (TEXTS[1], TEXTS[1]), ("x", TEXTS[0]), ("x", TEXTS[1]), ("y", TEXTS[1]),
    ]  # fmt: skip
    for prompt, r in zip(found["prompts"], [routes[i] for i in (0, 1, 0, 1, 1)], strict=True):
        assert prompt["tokens"] == r.n_tokens
        np.testing.assert_allclose(prompt["shares"], r.shares(), atol=1e-6)
        np.testing.assert_allclose(prompt["by_layer"], r.by_layer(), atol=1e-6)
    n = np.array([r.n_tokens for r in routes])
    both = (n[:, None] * np.array([r.shares() for r in routes])).sum(0) / n.sum()
    groups = {g["group"]: g for g in found["groups"]}
    assert list(groups) == ["a.txt", TEXTS[1], "x", "y"]
    np.testing.assert_allclose(groups["x"]["shares"], both, atol=1e-6)
    assert found["all"]["tokens"] == 2 * n[0] + 3 * n[1]


def test_text_and_settings(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Lines for people, also with steered experts and as a chat."""
    code, out, _ = run(
        capsys, folder, "-m", "@f32.gguf", "-p", TEXTS[0], "--experts", "math=3,code=1",
        "--delta-mode", "gain",
    )  # fmt: skip
    assert code == 0
    head, columns, line = out.splitlines()
    assert head == "f32.gguf: share of the routing weight, mode gain, math=0.75 code=0.25"
    assert columns.split() == ["tokens", "math", "logic", "code", "science", "planning"]
    assert re.findall(r"[\d.]+ %", line) == ["75.0 %", "0.0 %", "25.0 %", "0.0 %", "0.0 %"]
    code, out, _ = run(
        capsys, folder, "-m", "@f32.gguf", "-p", "x", "--experts", "*=mute", "--json"
    )
    assert json.loads(out)["all"]["shares"] == [0, 0, 0, 0, 0]


def test_compare(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Against plain loops over both files' routes; a file agrees wholly with itself."""
    args = ("-m", "@f32.gguf", "--prompts", "@b.json")
    code, out, _ = run(capsys, folder, *args, "--compare", "@q4.gguf", "--json")
    assert code == 0
    found = json.loads(out)["compare"]
    first, same, common = [], [], []
    for text in (*TEXTS, TEXTS[1]):
        a, b = (direct(folder / f, text).ids for f in ("f32.gguf", "q4.gguf"))
        for i in range(2):
            for t in range(a.shape[1]):
                x, y = set(a[i, t].tolist()), set(b[i, t].tolist())
                first.append((i, a[i, t, 0] == b[i, t, 0]))
                same.append((i, x == y))
                common.append((i, len(x & y) / 2))
    for name, values in (("same_first", first), ("same_set", same), ("overlap", common)):
        layers = [np.mean([v for i, v in values if i == layer]) for layer in range(2)]
        np.testing.assert_allclose([x[name] for x in found["layers"]], layers, atol=1e-6)
        assert found["total"][name] == pytest.approx(np.mean(layers), abs=1e-6)
    assert [x["layer"] for x in found["layers"]] == [0, 2]
    assert 0.3 < found["total"]["overlap"] < 1
    code, out, _ = run(
        capsys, folder, *args, "--compare", "@base.gguf", "--compare-adapter", "@experts.gguf"
    )
    assert code == 0
    assert "agreement with base.gguf" in out
    code, out, _ = run(capsys, folder, *args, "--compare", "@f32.gguf")
    assert out.splitlines()[-1].split() == ["all", *(["100.00", "%"] * 4)]
    assert len(out.splitlines()) == 5 + 3 + 3


def test_texts_of_the_same_name_stay_apart(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    """Files, texts that begin alike, and groups; one that is called "all" is not the total."""
    (tmp_path / "a.txt").write_text("another text of this name")
    (tmp_path / "p.json").write_text(
        json.dumps({"all": TEXTS[1], "a.txt (2)": "x", "a.txt": "y z"})
    )
    long = "one " * 40
    args = (
        "-m", "@f32.gguf", "-f", "@a.txt", "-f", str(tmp_path / "a.txt"), "-p", long + "x",
        "-p", long + "yes", "--prompts", str(tmp_path / "p.json"),
    )  # fmt: skip
    code, out, _ = run(capsys, folder, *args, "--json")
    assert code == 0
    found = json.loads(out)
    names = [g["group"] for g in found["groups"]]
    title = ("one " * 20)[:79] + "…"
    assert names == [
        "a.txt", "a.txt (2)", title, f"{title} (2)", "all", "a.txt (2) (2)", "a.txt (3)",
    ]  # fmt: skip
    assert [p["title"] for p in found["prompts"]][:2] == ["a.txt", "a.txt (2)"]
    for group, text in zip(found["groups"], (TEXTS[0], "another text of this name"), strict=False):
        np.testing.assert_allclose(
            group["shares"], direct(folder / "f32.gguf", text).shares(), atol=1e-6
        )
    _, out, _ = run(capsys, folder, *args)
    assert sum(line.startswith("all  ") for line in out.splitlines()) == 1
    assert out.splitlines()[-1].startswith("all texts ")
    assert len(out.splitlines()) == 2 + len(names) + 1


def test_standard_input(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag, data in (("-f", TEXTS[1]), ("--prompts", json.dumps({"standard input": TEXTS[1]}))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
        code, out, err = run(capsys, folder, "-m", "@f32.gguf", flag, "-", "--json")
        assert code == 0, err
        (group,) = json.loads(out)["groups"]
        assert group["group"] == "standard input"
        expected = direct(folder / "f32.gguf", TEXTS[1]).shares()
        np.testing.assert_allclose(group["shares"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("experts", "k"),
    [(None, 2), ("math=1,code=1,logic=2", 3), ("*=mute", 0), ("*=mute,math=+1", 1)],
)
def test_a_page_that_would_be_too_large_is_refused_before_the_evaluation(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experts: str | None,
    k: int,
) -> None:
    """What is counted beforehand is what the routes are."""
    counted: list[int] = []
    monkeypatch.setattr(routing_cli, "check_size", counted.append)
    args = ["-m", "@f32.gguf", "-p", TEXTS[1], "-o", str(tmp_path / "r.html"), "--json"]
    args += ["--experts", experts] if experts is not None else []
    code, _, err = run(capsys, folder, *args)
    assert code == 0, err
    routes = direct(folder / "f32.gguf", TEXTS[1], experts=experts)
    assert counted == [routes.ids.size]
    assert routes.ids.shape[2] == k
    monkeypatch.undo()
    monkeypatch.setattr(routing_page, "MAX_ROUTES", 1)
    monkeypatch.setattr(routing_cli, "route", lambda *_: pytest.fail("it was evaluated"))
    code, _, err = run(capsys, folder, *args) if k else (2, "", "too large for a browser")
    assert (code, "too large for a browser" in err) == (2, True)


@pytest.mark.filterwarnings("error:Glyph")
def test_outputs(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    """The page and the picture replace those of before; the same call gives the same bytes."""
    page, png = tmp_path / "r.html", tmp_path / "r.png"
    args = (
        "-m",
        "@f32.gguf",
        "-p",
        TEXTS[0],
        "-p",
        "$x_{y$ 🐟",
        "-o",
        str(page),
        "--png",
        str(png),
    )
    code, _, err = run(capsys, folder, *args)
    assert code == 0
    assert err.splitlines() == [f"wrote {page}", f"wrote {png}"]
    before = page.read_bytes(), png.read_bytes()
    assert run(capsys, folder, *args)[0] == 0
    assert (page.read_bytes(), png.read_bytes()) == before
    assert before[1].startswith(b"\x89PNG")
    text = before[0].decode()
    assert "http" not in text.replace("http-equiv", "")
    assert sorted(tmp_path.iterdir()) == [page, png]
    png.unlink()
    many = [a for i in range(40) for a in ("-p", f"text {i}")]
    assert run(capsys, folder, "-m", "@f32.gguf", *many, "--png", str(png))[0] == 0
    assert png.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (["-m", "@f32.gguf"], 2, "there is no text: give one with -f FILE"),
        (["-m", "@none.gguf", "-p", "x", "-p", ""], 2, "a text of number 2 is empty"),
        (["-m", "@f32.gguf", "--chat", "-p", ""], 2, "a text of number 1 is empty"),
        (["-m", "@none.gguf", "-f", "@empty.txt"], 2, "a text of 'empty.txt' is empty"),
        (["-m", "@f32.gguf", "-f", "-", "--prompts", "-"], 2, "standard input can be read once"),
        (["-m", "@F32.gguf", "-p", "x"], 4, "did you mean .*f32.gguf"),
        (["-m", "@f32.gguf", "-p", "x", "--compare", "@q4"], 4, "did you mean .*q4.gguf"),
        (["-m", "@f32.gguf", "-p", "x", "--prompts", "@twice.json"], 3, "twice.json: 'x' stands twice"),
        (["-m", "@f32.gguf", "-p", "x", "--compare", "@q4.gguf", "--experts", "*=mute"], 2, "all experts"),
        (["-m", "@f32.gguf", "-p", "x", "--experts", "mth=1"], 2, "did you mean 'math'"),
        (["-m", "@f32.gguf", "-p", "x", "-o", "r.txt"], 2, "-o r.txt: expected a name that ends in .html"),
        (["-m", "@f32.gguf", "-p", "x", "--png", "r.jpg"], 2, "ends in .png"),
        (["-m", "@f32.gguf", "-p", "x", "-o", "no/such/r.html"], 4, "no/such"),
        (["-m", "@f32.gguf", "-p", "x", "--compare-adapter", "@experts.gguf"], 2, "needs --compare"),
        (["-m", "@f32.gguf", "-p", "x", "-t", "0"], 2, "--threads is 0"),
        (["-m", "@f32.gguf", "-p", "x y z", "-c", "2"], 1, r"\d+ tokens do not fit"),
        (["-m", "@f32.gguf", "-p", "x " * 9000], 2, "longest text has .* tokens, and the model"),
        (["-m", "@base.gguf", "-p", "x"], 3, "plain base model: nothing is routed"),
        (["-m", "@a.txt", "-p", "x"], 3, "a.txt"),
        (["-m", "@none.gguf", "-p", "x"], 4, "No such file"),
        (["-m", "@f32.gguf", "-f", "@none.txt"], 4, "none.txt: No such file"),
        (["-m", "@f32.gguf", "-f", "@latin1.txt"], 3, "not UTF-8 at byte 3"),
        (["-m", "@f32.gguf", "--prompts", "@not.json"], 3, "not.json: the prompts are not JSON"),
        (["-m", "@f32.gguf", "--prompts", "@deep.json"], 3, "deep.json: "),
        (["-m", "@f32.gguf", "--prompts", "@list.json"], 3, "expected an object of lists"),
        (["-m", "@f32.gguf", "--prompts", "@numbers.json"], 3, "a text of 'x' is a int"),
        (["-m", "@f32.gguf", "--prompts", "@latin1.txt"], 3, "not UTF-8"),
        (["-m", "@f32.gguf", "-p", "x", "--compare", "@base.gguf"], 3, "plain base"),
        (["-m", "@f32.gguf", "-p", "x", "--compare", "@other.gguf"], 2, "experts in other layers"),
        (["-m", "@f32.gguf", "-p", "x", "--compare", "@none.gguf"], 4, "No such file"),
    ],
)  # fmt: skip
def test_wrong_use(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    code: int,
    match: str,
) -> None:
    """One line, the exit code of its kind, and nothing written."""
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, folder, *args)
    assert found == code, err
    if code:
        assert len(err.splitlines()) == 1
        assert re.search(match, err), err
        assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_not_overwritten(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Under any name: a page whose link is the text file."""
    link = folder / "link.html"
    link.symlink_to(folder / "a.txt")
    code, _, err = run(capsys, folder, "-m", "@f32.gguf", "-f", "@a.txt", "-o", str(link))
    assert (code, "the output is the input" in err) == (3, True)
    assert (folder / "a.txt").read_text() == TEXTS[0]


def test_data_cannot_end_its_element() -> None:
    """Whatever a token is, the script element's text has no markup, and reads back the same."""
    hostile = {"a": ["</script>", "<!--<script>", "]]>", "&lt;", "\u2028", "é😀"]}
    text = _inert_json(hostile)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == hostile


def test_colours() -> None:
    """Different for every expert, six digits; the nearest of xterm's colours, greys among them."""
    colours = expert_colours(256)
    assert len(set(colours)) == 256
    assert all(re.fullmatch("#[0-9a-f]{6}", c) for c in colours)
    assert expert_colours(3) == colours[:3]
    assert sgr_colour("#ff0000") == "\x1b[38;5;196m"
    assert sgr_colour("#000000") == "\x1b[38;5;16m"
    assert sgr_colour("#8a8a8a") == "\x1b[38;5;245m"
    assert len({sgr_colour(c) for c in colours[:10]}) == 10


@pytest.mark.parametrize("value", [5, 0, True, False, None, 1.5, {"x": 1}, {}])
def test_a_group_is_a_text_or_a_list(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"b": ["fine"], "a": value}))
    with pytest.raises(FormatError, match=r"'a' is .*, expected a text or a list of texts"):
        read_prompts(str(path))


def test_lone_surrogates_in_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path
) -> None:
    """Every output shows them as U+FFFD."""
    texts = tmp_path / "p.json"
    texts.write_text(json.dumps({"a\ud800b": ["one \udc00 two"], "c": "three"}))
    page, png = tmp_path / "r.html", tmp_path / "r.png"
    args = ("-m", "@f32.gguf", "--prompts", str(texts), "-o", str(page), "--png", str(png))
    code, out, err = run(capsys, folder, *args)
    assert code == 0, err
    assert "a\ufffdb" in out
    assert r"a\ufffdb" in page.read_text("utf-8")  # as JSON
    assert png.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, folder, *args, "--json")
    assert json.loads(out)["groups"][0]["group"] == "a\ufffdb"


def test_a_failed_picture_leaves_no_page(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    folder: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page, png = tmp_path / "r.html", tmp_path / "r.png"
    code, _, err = run(
        capsys, folder, "-m", "@f32.gguf", "-p", "hi", "-o", str(page), "--png", str(png)
    )
    assert code == 2
    assert "--png needs matplotlib" in err
    assert list(tmp_path.iterdir()) == []
