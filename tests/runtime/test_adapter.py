"""Adapter files: the experts of a merged file and of base plus adapter are the same; misfits are refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_mutate import Gguf, Tensor, load
from make_checkpoint import srde_checkpoint, tiny_base
from models import TinyModel, random_tokens
from sardine_gguf import FormatError, Sardine, _native
from sardine_gguf.convert import convert, write_base
from test_bad_sardine import CASES, GOOD

Change = Callable[[Gguf], None]
TOKENS = random_tokens(40, seed=3)


@pytest.fixture(scope="module")
def pair(tiny: TinyModel) -> tuple[Path, Path]:
    """`tiny` as two files: plain base and adapter."""
    base, adapter = (tiny.gguf.with_name(n) for n in ("plain.gguf", "adapter.gguf"))
    write_base(tiny.base, base, "f32")
    convert(tiny.base, tiny.srde, adapter, adapter=True, delta_type="f32")
    return base, adapter


@pytest.fixture(scope="module")
def small_pair(small: TinyModel) -> tuple[Path, Path]:
    """`small` as two files."""
    base, adapter = (small.gguf.with_name(n) for n in ("plain.gguf", "adapter.gguf"))
    write_base(small.base, base, "f32")
    convert(base, small.srde, adapter, adapter=True, block_columns=20)
    return base, adapter


def run(path: Path, **options: Any) -> tuple[Any, Any]:
    """Logits of a batch and of single tokens; routing of the batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Sardine(path, n_threads=1, **options) as m:
            batch = m.eval(TOKENS)
            routing = m.routing() if m.delta_mode != "off" else ()
            single = [m.eval([t]) for t in TOKENS[:3]]
            return (batch, *single), routing


@pytest.mark.parametrize("mode", ["sparse", "gain", "off", None])
def test_equal_to_the_merged_file(tiny: TinyModel, pair: tuple[Path, Path], mode: str) -> None:
    base, adapter = pair
    merged, merged_routing = run(tiny.gguf, delta_mode=mode)
    found, routing = run(base, adapter=adapter, delta_mode=mode)
    for a, b in zip(merged, found, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(merged_routing, routing, strict=True):
        np.testing.assert_array_equal(a, b)
    plain, _ = run(base)
    assert np.array_equal(plain[0], found[0]) == (mode == "off")


@pytest.mark.parametrize("outtype", ["f16", "q8_0", "q4_k_m"])
def test_one_adapter_fits_every_quantization(tiny: TinyModel, outtype: str) -> None:
    """Made from a folder or from any GGUF of the model it has the same bytes, and no complaint comes."""
    folder = tiny.gguf.parent
    base, merged = (
        folder / f"base-{outtype}.gguf",
        tiny.converted(f"m-{outtype}", outtype=outtype, compensation="none"),
    )
    adapters = [folder / f"a-{outtype}-{i}.gguf" for i in range(2)]
    write_base(tiny.base, base, outtype)
    for source, adapter in zip((tiny.base, base), adapters, strict=True):
        convert(source, tiny.srde, adapter, adapter=True)
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    np.testing.assert_array_equal(run(merged)[0][0], run(base, adapter=adapters[0])[0][0])


def test_it_is_named(pair: tuple[Path, Path], tiny: TinyModel) -> None:
    base, adapter = pair
    with Sardine(base, adapter=adapter) as m, Sardine(base) as plain, Sardine(tiny.gguf) as merged:
        assert m.adapter == str(adapter)
        assert plain.adapter is None
        assert "adapter: adapter.gguf" in m.describe()
        assert "experts: 5, 3 a token" in m.describe()
        assert "adapter" not in plain.describe()
        assert m.expert_names == merged.expert_names
        assert m.metadata["adapter.path"] == str(adapter)
        assert m.metadata["adapter.type"] == "sardine"
        assert m.metadata["general.type"] == "model"
        own = {k: v for k, v in m.metadata.items() if k.startswith("sardine.")}
        want = {k: v for k, v in merged.metadata.items() if k.startswith("sardine.")}
        assert {k: v for k, v in own.items() if not k.startswith("sardine.base.")} == want
        assert not [k for k in plain.metadata if k.startswith(("sardine.", "adapter."))]


def test_keys(small_pair: tuple[Path, Path]) -> None:
    """What docs/format.md lists, and nothing of the base's tokenizer or weights."""
    base, adapter = (load(p) for p in small_pair)
    shape = {
        "block_count": 2, "embedding_length": 32, "feed_forward_length": 33,
        "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 16,
        "vocab_size": 270,
    }  # fmt: skip
    for key, value in shape.items():
        assert adapter.value(f"sardine.base.{key}") == value
    norms = [f"blk.{i}.{n}_norm.weight" for i in range(2) for n in ("attn", "ffn")]
    data = b"".join(base.tensor(n).data[: 4 * 32] for n in [*norms, "output_norm.weight"])
    assert adapter.value("sardine.base.norm_crc32") == zlib.crc32(data)
    assert adapter.value("general.architecture") == base.value("general.architecture")
    assert adapter.value("general.base_model.0.name") == base.value("general.name")
    assert not [e.key for e in adapter.entries if e.key.startswith((b"tokenizer.", b"mistral3."))]
    assert all(b"ffn_gate_inp" in t.name or b"delta" in t.name for t in adapter.tensors)


OTHER = {
    "block_count": ({"layers": 3}, "2", "3"),
    "embedding_length": ({"hidden": 64}, "32", "64"),
    "feed_forward_length": ({"inner": 65}, "33", "65"),
    "attention.head_count": ({"heads": 4}, "2", "4"),
    "attention.head_count_kv": ({"heads_kv": 2}, "1", "2"),
    "attention.key_length": ({"head_dim": 32}, "16", "32"),
    "vocab_size": ({"vocab": 280}, "270", "280"),
}


@pytest.mark.parametrize("key", OTHER)
def test_another_shape(small_pair: tuple[Path, Path], tmp_path: Path, key: str) -> None:
    """Refused, with both numbers and both files."""
    change, wanted, found = OTHER[key]
    shape: dict[str, Any] = {
        "hidden": 32, "inner": 33, "layers": 2, "heads": 2, "heads_kv": 1, "vocab": 270,
    }  # fmt: skip
    tiny_base(tmp_path / "b", **{**shape, **change})
    write_base(tmp_path / "b", tmp_path / "b.gguf", "f32")
    with pytest.raises(FormatError) as caught:
        Sardine(tmp_path / "b.gguf", adapter=small_pair[1])
    assert caught.value.field == f"sardine.base.{key}"
    assert caught.value.file == str(small_pair[1])
    for part in (f"{key} {wanted},", f"has {found}:", str(tmp_path / "b.gguf")):
        assert part in str(caught.value)


def test_another_model_of_that_shape_warns(small_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The deltas fit, but were made for other weights: that is allowed, and said."""
    shape: dict[str, Any] = {
        "hidden": 32, "inner": 33, "layers": 2, "heads": 2, "heads_kv": 1, "vocab": 270,
    }  # fmt: skip
    tiny_base(tmp_path / "b", seed=9, **shape)
    write_base(tmp_path / "b", tmp_path / "b.gguf", "f32")
    with pytest.warns(UserWarning, match="another finetune"):
        Sardine(tmp_path / "b.gguf", adapter=small_pair[1]).close()
    result = subprocess.run(
        [sys.executable, "-m", "sardine_gguf.cli", "-m", tmp_path / "b.gguf", "--adapter",
         small_pair[1], "-p", "x", "-n", "1", "-t", "1", "--no-show-timings"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stderr.startswith("sardine-cli: warning: ")
    assert len(result.stderr.splitlines()) == 1


def test_wrong_kinds_of_files(
    small: TinyModel, small_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = small_pair
    lora = load(adapter)
    lora.set("adapter.type", "str", "lora")
    (tmp_path / "lora.gguf").write_bytes(lora.build())
    other = load(adapter)
    other.set("general.architecture", "str", "llama")
    (tmp_path / "other.gguf").write_bytes(other.build())
    for model, given, field, culprit, words in (
        (adapter, None, "general.type", adapter, "--adapter"),
        (adapter, adapter, "general.type", adapter, "with -m"),
        (base, base, "general.type", base, "expected an adapter"),
        (base, small.gguf, "general.type", small.gguf, "expected an adapter"),
        (small.gguf, adapter, "sardine.version", small.gguf, "experts already"),
        (base, tmp_path / "lora.gguf", "adapter.type", tmp_path / "lora.gguf", "'lora'"),
        (
            base,
            tmp_path / "other.gguf",
            "general.architecture",
            tmp_path / "other.gguf",
            "mistral3",
        ),
    ):
        with pytest.raises(FormatError, match=words) as caught:
            Sardine(model, adapter=given)
        assert (caught.value.field, caught.value.file) == (field, str(culprit))
    with pytest.raises(FileNotFoundError):
        Sardine(base, adapter=tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError):
        Sardine(base, adapter="")
    with pytest.raises(ValueError, match="null byte"):
        Sardine(base, adapter="a\0b")
    with pytest.raises(ValueError, match="plain base"):
        Sardine(base, delta_mode="sparse")


def test_converter_refuses(small: TinyModel, small_pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    with pytest.raises(ValueError, match="outtype"):
        convert(small.base, small.srde, out, adapter=True, outtype="q8_0")
    with pytest.raises(ValueError, match="compensation"):
        convert(small.base, small.srde, out, adapter=True, compensation="residual")
    for wrong in (small_pair[1], small.gguf):
        with pytest.raises(FormatError):
            convert(wrong, small.srde, out, adapter=True)
    lora = load(small_pair[0])
    lora.set("general.type", "str", "adapter")
    (tmp_path / "lora.gguf").write_bytes(lora.build())
    with pytest.raises(FormatError, match="adapter"):
        convert(tmp_path / "lora.gguf", small.srde, out)
    headless = load(small_pair[0])
    headless.drop("mistral3.attention.head_count")
    (tmp_path / "headless.gguf").write_bytes(headless.build())
    with pytest.raises(FormatError, match="head_count"):
        convert(tmp_path / "headless.gguf", small.srde, out, adapter=True)
    assert not out.exists()


def test_some_layers_and_no_positions(
    tiny: TinyModel, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for name, options in (("some", {"layers": [2]}), ("none", {"positions": 0})):
        srde = srde_checkpoint(tmp_path / f"{name}.pt", tiny.base, **options)
        convert(tiny.base, srde, tmp_path / f"{name}-a.gguf", adapter=True, delta_type="f32")
        convert(tiny.base, srde, tmp_path / f"{name}-m.gguf", outtype="f32")
        merged, found = (
            run(tmp_path / f"{name}-m.gguf"),
            run(pair[0], adapter=tmp_path / f"{name}-a.gguf"),
        )
        np.testing.assert_array_equal(merged[0][0], found[0][0])
        np.testing.assert_array_equal(merged[1][0], found[1][0])


# ---- damaged adapters: the same strictness as for merged files ----


@pytest.mark.parametrize("name", CASES)
def test_bad_sardine_part_of_an_adapter(
    name: str, small_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each defect of test_bad_sardine, with the adapter named, with its base and alone."""
    change, field = CASES[name]
    g = load(small_pair[1])
    change(g)
    path = tmp_path / "bad.gguf"
    path.write_bytes(g.build())
    with pytest.raises(FormatError) as caught:
        Sardine(small_pair[0], adapter=path, n_ctx=32)
    assert caught.value.file == str(path)
    assert caught.value.field.startswith(field) or field in caught.value.field
    with pytest.raises(FormatError) as alone:
        _native.check_adapter(_native.GgufFile(str(path)))
    assert alone.value.field == caught.value.field


@pytest.mark.parametrize("name", GOOD)
def test_good_sardine_part_of_an_adapter(
    name: str, small_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    g = load(small_pair[1])
    GOOD[name](g)
    (tmp_path / "good.gguf").write_bytes(g.build())
    _native.check_adapter(_native.GgufFile(str(tmp_path / "good.gguf")))
    with Sardine(small_pair[0], adapter=tmp_path / "good.gguf", n_ctx=32) as m:
        assert m.eval([1, 8, 9]).shape == (3, 270)


SHAPE = "sardine.base."
BAD_ADAPTER: dict[str, tuple[Change, str]] = {
    "no_type": (lambda g: g.drop("adapter.type"), "adapter.type"),
    "type_number": (lambda g: g.set("adapter.type", "u32", 1), "adapter.type"),
    "general_type_number": (lambda g: g.set("general.type", "u32", 1), "general.type"),
    "no_general_type": (lambda g: g.drop("general.type"), "general.type"),
    "no_architecture": (lambda g: g.drop("general.architecture"), "general.architecture"),
    "no_length": (lambda g: g.drop(SHAPE + "embedding_length"), SHAPE + "embedding_length"),
    "length_0": (lambda g: g.set(SHAPE + "embedding_length", "u32", 0), SHAPE + "embedding_length"),
    "length_huge": (
        lambda g: g.set(SHAPE + "embedding_length", "u32", 2**32 - 1),
        SHAPE + "embedding_length",
    ),
    "inner_i32": (
        lambda g: g.set(SHAPE + "feed_forward_length", "i32", 33),
        SHAPE + "feed_forward_length",
    ),
    "layers_text": (lambda g: g.set(SHAPE + "block_count", "str", "2"), SHAPE + "block_count"),
    "layers_1": (lambda g: g.set(SHAPE + "block_count", "u32", 1), "sardine.base.block_count"),
    "residual": (
        lambda g: g.set("sardine.compensation", "str", "residual"),
        "sardine.compensation",
    ),
    "extracted": (
        lambda g: (
            g.set("sardine.version", "u32", 2),
            g.set("sardine.compensation", "str", "extracted"),
        ),
        "sardine.compensation",
    ),
    "no_norms": (lambda g: g.drop(SHAPE + "norm_crc32"), SHAPE + "norm_crc32"),
    "no_vocab": (lambda g: g.drop(SHAPE + "vocab_size"), SHAPE + "vocab_size"),
    "a_base_tensor": (
        lambda g: g.tensors.append(Tensor(b"output_norm.weight", [32], 0, bytes(128))),
        "output_norm.weight",
    ),
    "no_tensors": (lambda g: g.tensors.clear(), "blk.0.ffn_gate_inp.weight"),
}


@pytest.mark.parametrize("name", BAD_ADAPTER)
def test_bad_adapter(name: str, small_pair: tuple[Path, Path], tmp_path: Path) -> None:
    change, field = BAD_ADAPTER[name]
    g = load(small_pair[1])
    change(g)
    (tmp_path / "bad.gguf").write_bytes(g.build())
    with pytest.raises(FormatError) as caught:
        Sardine(small_pair[0], adapter=tmp_path / "bad.gguf")
    assert (caught.value.field, caught.value.file) == (field, str(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)


def test_truncated_adapter(small_pair: tuple[Path, Path], tmp_path: Path) -> None:
    data = small_pair[1].read_bytes()
    path = tmp_path / "cut.gguf"
    for n in [*range(0, 400, 7), *range(400, len(data) - 32, len(data) // 60)]:
        path.write_bytes(data[:n])
        with pytest.raises(FormatError) as caught:
            Sardine(small_pair[0], adapter=path)
        assert caught.value.file == str(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError):
        Sardine(small_pair[0], adapter=path)


def test_command_line(tiny: TinyModel, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """sardine-cli answers as with the merged file; errors have their exit codes."""

    def cli(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sardine_gguf.cli", *map(str, args), "-p", "hi", "-n", "8",
             "--temp", "0", "-t", "1", "--no-show-timings"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    base, adapter = pair
    one, two = cli("-m", tiny.gguf), cli("-m", base, "--adapter", adapter)
    assert (one.returncode, two.returncode) == (0, 0)
    assert one.stdout == two.stdout != cli("-m", base).stdout
    assert two.stderr == ""
    for args, code, message in (
        (["-m", adapter], 3, "--adapter"),
        (["-m", base, "--adapter", base], 3, "expected an adapter"),
        (["-m", tiny.gguf, "--adapter", adapter], 3, "experts already"),
        (["-m", base, "--adapter", tmp_path / "none"], 4, "none"),
    ):
        result = cli(*args)
        assert result.returncode == code
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
