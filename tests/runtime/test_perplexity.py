"""sardine-perplexity: against llama.cpp's logits by an implementation of its own, and against itself."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf_mutate import Gguf
from hypothesis import given
from hypothesis import strategies as st
from models import EXAMPLE
from numpy.typing import NDArray
from sardine_gguf import FormatError, Sardine
from sardine_gguf.convert import convert
from sardine_gguf.logits_file import LogitsFile, decode_rows, encode_rows, row_numbers
from sardine_gguf.perplexity import _finite, main
from sardine_gguf.scoring import Divergence, Perplexity, cut, log_softmax, scored

N_CTX = 64


@pytest.fixture(scope="module")
def base(example_base: Path) -> Path:
    return example_base


@pytest.fixture(scope="module")
def text(workshop: Path, base: Path) -> Path:
    """What the example's base says by itself, so that it knows a little about it: 7 chunks and a rest."""
    path = workshop / "text.txt"
    with Sardine(base, n_ctx=128, n_threads=1) as m:
        parts: list[str] = []
        while len(m.tokenize("\n".join(parts))) < 7 * N_CTX + 10:
            parts.append(m.generate("", max_tokens=60, temperature=1.0, seed=len(parts)))
    path.write_text("\n".join(parts) + "\n")
    return path


@pytest.fixture(scope="module")
def full(workshop: Path) -> Path:
    """With experts, over the same bytes of the base."""
    path = workshop / "ppl-full.gguf"
    srde = EXAMPLE / "srde_weights.pt"
    convert(EXAMPLE / "base", srde, path, outtype="q8_0", n_threads=1, compensation="none")
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main([str(a) for a in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def measured(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    code, out, err = run(capsys, *args, "--json", "-t", 1)
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def reference_logits(
    path: Path, text: str, n_ctx: int, n_batch: int
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """llama.cpp's tokens and the logits of each whole chunk, BOS in its first place."""
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_threads=1,
        logits_all=True,
        flash_attn=True,
        verbose=False,
    )
    tokens = llama.tokenize(text.encode(), add_bos=True, special=False)
    chunks = []
    for begin in range(0, len(tokens) - n_ctx + 1, n_ctx):
        llama.reset()
        llama.eval([llama.token_bos(), *tokens[begin + 1 : begin + n_ctx]])
        chunks.append(np.array(llama.scores[:n_ctx], np.float32))
    llama.close()
    return tokens, chunks


def reference_perplexity(
    tokens: list[int], chunks: list[NDArray[np.float32]]
) -> tuple[float, float, int]:
    """Value, standard error and count: from each chunk's second half on, each token by its predecessor."""
    losses = []
    n_ctx = len(chunks[0])
    for i, logits in enumerate(chunks):
        for position in range(n_ctx // 2, n_ctx - 1):
            row = logits[position].astype(np.float64)
            target = tokens[i * n_ctx + position + 1]
            top = row.max()
            losses.append(top + math.log(sum(math.exp(x - top) for x in row)) - row[target])
    mean = sum(losses) / len(losses)
    variance = sum((x - mean) ** 2 for x in losses) / len(losses)
    return math.exp(mean), math.exp(mean) * math.sqrt(variance / (len(losses) - 1)), len(losses)


@pytest.fixture(scope="module")
def reference(base: Path, text: Path) -> tuple[list[int], list[NDArray[np.float32]]]:
    return reference_logits(base, text.read_text().removesuffix("\n"), N_CTX, N_CTX)


def test_equals_llama_cpp(
    base: Path, text: Path, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Far within 0.1 %: with flash attention a plain base's logits are llama.cpp's, batch for batch."""
    plain = text.read_text().removesuffix("\n")
    for batch, wanted in ((512, reference), (24, reference_logits(base, plain, N_CTX, 24))):
        value, error, count = reference_perplexity(*wanted)
        found = measured(capsys, "-m", base, "-f", text, "-c", N_CTX, "-b", batch)
        assert found["chunks"] == len(wanted[1]) == 7
        assert found["tokens"] == count == 7 * scored(N_CTX)
        assert found["ppl"]["value"] == pytest.approx(value, rel=1e-4)
        assert found["ppl"]["error"] == pytest.approx(error, rel=1e-4)


def test_output(base: Path, text: Path, reference: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The running values and the last line, as llama.cpp prints them."""
    code, out, _ = run(capsys, "-m", base, "-f", text, "-c", N_CTX, "--chunks", 3, "-t", 1)
    assert code == 0
    running, last = out.strip().split("\n")
    parts = running.removesuffix(",").split(",")
    assert [p.split("]")[0] for p in parts] == ["[1", "[2", "[3"]
    for n, part in enumerate(parts, 1):
        value = reference_perplexity(reference[0], reference[1][:n])[0]
        assert abs(float(part.split("]")[1]) / value - 1) < 1e-3
    value, error, _ = reference_perplexity(reference[0], reference[1][:3])
    assert last.startswith("Final estimate: PPL = ")
    assert float(last.split()[4]) == pytest.approx(value, rel=1e-3)
    assert float(last.split()[6]) == pytest.approx(error, rel=1e-3)


def test_saved_logits(
    base: Path, text: Path, reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's format, read here by its description: every log probability within half a step."""
    path = tmp_path / "logits"
    saved = measured(
        capsys, "-m", base, "-f", text, "-c", N_CTX, "--chunks", 2, "--save-all-logits", path
    )
    plain = measured(capsys, "-m", base, "-f", text, "-c", N_CTX, "--chunks", 2)
    assert saved["ppl"] == plain["ppl"]
    data = path.read_bytes()
    magic, n_ctx, n_vocab, n_chunk = struct.unpack_from("<8siii", data)
    assert (magic, n_ctx, n_chunk) == (b"_logits_", N_CTX, 2)
    tokens = struct.unpack_from(f"<{n_chunk * n_ctx}i", data, 20)
    assert list(tokens) == reference[0][: n_chunk * n_ctx]
    at = 20 + 4 * n_chunk * n_ctx
    for logits in reference[1][:2]:
        for position in range(n_ctx // 2, n_ctx - 1):
            scale, low = struct.unpack_from("<ff", data, at)
            q = struct.unpack_from(f"<{n_vocab}H", data, at + 8)
            at += 8 + 2 * (n_vocab + n_vocab % 2)
            exact = log_softmax(logits[position : position + 1])[0]
            floor = exact.max() - 16
            found = low + scale * np.array(q, np.float64)
            # Half a step, and the distance of our logits from llama.cpp's.
            assert abs(found - np.maximum(exact, floor)).max() <= scale / 2 + 2e-3
    assert at == len(data)


def test_standard_input_and_types_of_the_cache(
    base: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """-f - is the same text; q8_0 is another cache than f16, and near it, by any name of the flag."""
    flags = ("-c", N_CTX, "--chunks", 2)
    plain = measured(capsys, "-m", base, "-f", text, *flags)
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes()), "ascii"))
        assert measured(capsys, "-m", base, "-f", "-", *flags)["ppl"] == plain["ppl"]
    found = [
        measured(capsys, "-m", base, "-f", text, *flags, *more)["ppl"]["value"]
        for more in (("-ctk", "q8_0"), ("--cache-type-v", "q8_0"), ("-ctk", "q8_0", "-ctv", "q8_0"))
    ]
    assert found[0] == found[1] == found[2] != plain["ppl"]["value"]
    assert found[0] == pytest.approx(plain["ppl"]["value"], rel=0.02)


def test_divergence_by_file_and_directly(
    base: Path, full: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ways agree, and with the figures of plain loops over the logits."""
    path = tmp_path / "logits"
    flags = ("-c", N_CTX, "-ctk", "f32")
    measured(capsys, "-m", base, "-f", text, *flags, "--kl-divergence-base", path)
    file = measured(
        capsys, "-m", full, "-ctk", "f32", "--kl-divergence", "--kl-divergence-base", path
    )
    direct = measured(
        capsys, "-m", full, "-f", text, *flags, "--kl-divergence", "--base-model", base
    )
    modes = measured(
        capsys, "-m", full, "-f", text, *flags, "--kl-divergence", "--base-delta-mode", "off"
    )
    assert file["tokens"] == direct["tokens"] == modes["tokens"] == 7 * scored(N_CTX)
    rows = list(_scored_rows(base, full, text))
    _check_figures(direct, rows, 1e-6)
    # The mode off of the file with experts is its base.
    _check_figures(modes, rows, 1e-6)
    # A file cuts the base's rows 16 below the likeliest token, and has 16 bits for the rest.
    _check_figures(file, [(np.maximum(b, b.max() - 16), q, t) for b, q, t in rows], 2e-3, floor=-16)


Row = tuple[NDArray[np.float64], NDArray[np.float64], int]


def _check_figures(found: dict[str, Any], rows: list[Row], rel: float, floor: float = -1e9) -> None:
    """Every figure against its definition."""
    kld = [
        sum(math.exp(x) * (x - y) for x, y in zip(b, q, strict=True) if x > floor)
        for b, q, _ in rows
    ]
    dp = [math.exp(q[t]) - math.exp(b[t]) for b, q, t in rows]
    nll_b, nll_q = np.array([-b[t] for b, _, t in rows]), np.array([-q[t] for _, q, t in rows])
    n = len(rows)

    def error(values: Any) -> float:
        return float(np.std(values) / math.sqrt(n - 1))

    ratio = nll_q - nll_b
    expected = {
        "ppl": (math.exp(nll_q.mean()), math.exp(nll_q.mean()) * error(nll_q)),
        "ppl_base": (math.exp(nll_b.mean()), math.exp(nll_b.mean()) * error(nll_b)),
        "ln_ppl_ratio": (ratio.mean(), error(ratio)),
        "ppl_ratio": (math.exp(ratio.mean()), math.exp(ratio.mean()) * error(ratio)),
        "kld": (np.mean(kld), error(kld)),
        "p_diff": (np.mean(dp), error(dp)),
        "same_top_p": (
            np.mean(same := [b.argmax() == q.argmax() for b, q, _ in rows]),
            error(same),
        ),
    }
    for name, (value, deviation) in expected.items():
        assert found[name]["value"] == pytest.approx(value, rel=rel, abs=rel / 10), name
        assert found[name]["error"] == pytest.approx(deviation, rel=10 * rel, abs=rel), name
    rms = math.sqrt(np.mean(np.square(dp)))
    assert found["p_diff_rms"]["value"] == pytest.approx(rms, rel=rel)
    assert found["ln_ppl_correlation"] == pytest.approx(
        np.corrcoef(nll_q, nll_b)[0, 1], rel=10 * rel
    )
    for name, values in (("kld", kld), ("p_diff", dp)):
        ordered = sorted(values)
        for percent, value in found[f"{name}_percentiles"].items():
            place = float(percent) / 100 * (n - 1)
            below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
            exact = below + (place - math.floor(place)) * (above - below)
            assert value == pytest.approx(exact, rel=10 * rel, abs=rel), (name, percent)


def _scored_rows(base: Path, full: Path, text: Path) -> Iterator[Row]:
    """(base's log probabilities, Q's, the text's token) at every scored token of whole chunks."""
    options: Any = {"n_ctx": N_CTX, "n_threads": 1, "kv_type": "f32"}
    with Sardine(base, **options) as b, Sardine(full, **options) as q:
        tokens = b.tokenize(text.read_text().removesuffix("\n"))
        for begin in range(0, len(tokens) - N_CTX + 1, N_CTX):
            chunk = [1, *tokens[begin + 1 : begin + N_CTX]]
            b.reset()
            q.reset()
            log_b, log_q = log_softmax(b.eval(chunk)), log_softmax(q.eval(chunk))
            for i in range(N_CTX // 2, N_CTX - 1):
                yield log_b[i], log_q[i], chunk[i + 1]


def test_report(full: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model against itself differs by nothing."""
    code, out, err = run(
        capsys,
        "-m",
        full,
        "-f",
        text,
        "-c",
        N_CTX,
        "--kl-divergence",
        "--base-model",
        full,
        "-t",
        1,
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("chunk")
    figures = {}
    for line in lines:
        name, colon, rest = line.partition(":")
        if colon:
            figures[name.strip()] = float(rest.replace("%", " ").split()[0])
    assert figures["Mean PPL(Q)"] == figures["Mean PPL(base)"]
    for name in (
        "Mean    KLD",
        "Maximum KLD",
        "99.9%   KLD",
        "Median  KLD",
        "RMS Δp",
        "Mean    Δp",
    ):
        assert figures[name] == 0
    assert figures["Same top p"] == 100
    assert figures["Mean PPL(Q)/PPL(base)"] == 1


def test_wrong_use(base: Path, full: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    """One line and the exit code; nothing is written."""
    logits = tmp_path / "logits"
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 400)
    (tmp_path / "other").write_text("another text " * 200)
    cases: list[tuple[list[object], int, str]] = [
        (["-m", base], 2, "-f FILE"),
        (["-m", base, "-f", text, "-c", 3], 2, "at least 4"),
        (["-m", base, "-f", text, "-c", 4096], 2, "expected at least 8192"),
        (["-m", base, "-f", text, "-c", N_CTX, "--chunks", 0], 2, "number of chunks"),
        (["-m", base, "-f", text, "--base-model", full], 2, "need --kl-divergence"),
        (["-m", base, "-f", text, "--kl-divergence"], 2, "needs either"),
        (["-m", base, "-f", tmp_path / "none"], 4, "No such file"),
        (["-m", base, "-f", tmp_path / "latin"], 3, "not UTF-8 at byte 3"),
        (["-m", text, "-f", text], 3, "not a GGUF"),
        (["-m", base, "-f", text, "-c", N_CTX, "--save-all-logits", base], 3, "is the input"),
        (["-m", base, "-f", text, "-c", N_CTX, "--save-all-logits", tmp_path], 3, "folder"),
        (["-m", base, "-f", text, "--save-all-logits", "/dev/null"], 3, "not a regular file"),
        (["-m", base, "-f", text, "-ctk", "q8_0", "-ctv", "f16"], 2, "one type for both"),
        (
            ["-m", base, "-f", text, "-c", N_CTX, "--save-all-logits", tmp_path / "a" / "b"],
            4,
            "No such",
        ),
        (["-m", base, "--kl-divergence", "--kl-divergence-base", text], 3, "_logits_"),
    ]
    for args, code, message in cases:
        found, out, err = run(capsys, *args)
        assert (found, out) == (code, ""), (args, err)
        assert message in err
        assert err.startswith("sardine-perplexity: error: ")
        assert err.count("\n") == 1
    assert not logits.exists()
    code, _, err = run(
        capsys, "-m", base, "-f", text, "-c", N_CTX, "--save-all-logits", logits, "--chunks", 2
    )
    assert code == 0, err
    read = ("-m", base, "--kl-divergence", "--kl-divergence-base", logits)
    for more, message in (
        (("-c", 32), "leave -c out"),
        (("-f", tmp_path / "other"), "another text"),
        (("--chunks", -2), "number of chunks"),
    ):
        code, _, err = run(capsys, *read, *more)
        assert code == 2
        assert message in err
    assert run(capsys, *read, "-f", text)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latin", "logits", "other"]


@pytest.fixture(scope="module")
def logits_bytes(base: Path, text: Path, workshop: Path) -> bytes:
    path = workshop / "good-logits"
    args = ["-m", base, "-f", text, "-c", 32, "--chunks", 2, "--save-all-logits", path, "--json"]
    assert main([str(a) for a in args]) == 0
    return path.read_bytes()


def read_all(path: Path) -> None:
    with LogitsFile(path) as f:
        for _ in range(f.n_chunk):
            f.read(scored(f.n_ctx))


def test_damaged_logits(logits_bytes: bytes, tmp_path: Path) -> None:
    """A typed error for each defect, before anything of a false size is allocated."""
    path = tmp_path / "logits"

    def refused(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(FormatError, match=message):
            read_all(path)

    def patched(offset: int, form: str, value: float) -> bytes:
        data = bytearray(logits_bytes)
        struct.pack_into(form, data, offset, value)
        return bytes(data)

    rows = 20 + 4 * 2 * 32
    for size in (0, 7, 8, 19, 20, 100, rows, len(logits_bytes) - 1):
        refused(logits_bytes[:size], "_logits_|header|bytes")
    refused(logits_bytes + b"\0", "bytes, expected")
    for offset in (8, 12, 16):
        for value in (-1, 0, 1, 2**31 - 1):
            if (offset, value) != (16, 2):
                refused(patched(offset, "<i", value), "expected")
    n_vocab = struct.unpack_from("<i", logits_bytes, 12)[0]
    for value in (-1, n_vocab, 2**31 - 1):
        refused(patched(24, "<i", value), "outside the vocabulary")
    for value in (math.nan, math.inf, -1.0, 1.0):
        refused(patched(rows, "<f", value), "row")
    for value in (math.nan, -math.inf, 1.0, -1.0):
        refused(patched(rows + 4, "<f", value), "row")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        LogitsFile(path)
    with pytest.raises(IsADirectoryError):
        LogitsFile(tmp_path)
    with pytest.raises(FormatError, match="regular"):
        LogitsFile(Path("/dev/zero"))


@given(
    st.lists(st.lists(st.floats(-60, 60, width=32), min_size=5, max_size=5), min_size=1, max_size=6)
)
def test_rows(rows: list[list[float]]) -> None:
    """Coded and decoded, log probabilities move by half a step at most, cut 16 below the likeliest."""
    logits = np.array(rows, np.float32)
    coded = encode_rows(logits)
    assert coded.shape == (len(rows), row_numbers(5) == 10 and 10)
    exact = log_softmax(logits)
    cut_off = np.maximum(exact, exact.max(axis=1, keepdims=True) - 16)
    assert abs(decode_rows(coded, 5) - cut_off).max() <= 16 / 65535 / 2 + 2e-5


def test_cut() -> None:
    """Whole chunks; a text of fewer than two is refused."""
    assert cut(list(range(11)), 5) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert cut(list(range(11)), 5, 1) == [[0, 1, 2, 3, 4]]
    assert cut(list(range(11)), 5, 9) == cut(list(range(11)), 5)
    for n_ctx in (6, 3, 0, -1):
        with pytest.raises(ValueError, match="at least"):
            cut(list(range(11)), n_ctx)


def test_figures_of_extreme_values() -> None:
    """No division by zero and no overflow, where a model is certain or hopeless."""
    p = Perplexity()
    p.add(np.zeros(20))
    assert (p.value, p.error) == (1, 0)
    p.add(np.full(20, 1e5))
    assert p.value == math.inf
    d = Divergence()
    logits = np.zeros((20, 3), np.float32)
    logits[:, 0] = 500
    d.add(logits, log_softmax(logits), np.zeros(20, np.int64))
    s = d.summary()
    assert s["kld"] == {"value": 0, "error": 0}
    assert s["ln_ppl_correlation"] is None
    json.dumps(s, allow_nan=False)
    assert _finite({"a": {"value": p.value, "error": 0.5}, "n": 3}) == {
        "a": {"value": None, "error": 0.5},
        "n": 3,
    }


def test_a_model_that_is_damaged(base: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    """Weights that give no number are an error and not a figure; no file is left."""
    g = Gguf.parse(base.read_bytes())
    (norm,) = [t for t in g.tensors if t.name == b"output_norm.weight"]
    norm.data = np.full(len(norm.data) // 4, np.finfo(np.float32).max, np.float32).tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(g.build())
    args = ("-m", path, "-f", text, "-c", N_CTX, "--save-all-logits", tmp_path / "logits")
    code, _, err = run(capsys, *args)
    assert (code, "not finite" in err) == (1, True), err
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
