"""Types and bytes of the base's tensors against llama.cpp's own rules and quantizer."""

from __future__ import annotations

import llama_quant
import numpy as np
import pytest
import read_sardine
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_checkpoint import tiny_base
from sardine_gguf.convert import OptionError, write_base
from sardine_gguf.convert.mixture import ModelShape, Unquantized, assign_types
from sardine_gguf.convert.options import quantization
from sardine_gguf.convert.schema import FILE_TYPES, OUT_TYPES, WEIGHT_TYPES

# Types that need no importance matrix, which the rule for others would refuse.
FREE_TYPES = [t for t in WEIGHT_TYPES if not t.startswith(("iq1", "iq2", "iq3_xxs"))]
FLOATS = ("f32", "f16", "bf16")

SHAPES = {
    # The rules over the layers are compared above; here it is the bytes.
    "whole blocks": {"hidden": 256, "inner": 256, "layers": 5, "heads": 4, "heads_kv": 1},
    "tied": {"hidden": 256, "inner": 256, "layers": 3, "tied": True, "heads": 16, "heads_kv": 8},
    "rows of 64 and 100": {"hidden": 64, "inner": 100, "layers": 8},
    "tied rows of 96": {"hidden": 96, "inner": 160, "layers": 8, "tied": True},
}


def tensors_of(hidden, inner, layers, heads, heads_kv, head_dim, vocab, tied):
    """Names and shapes in the order of llama.cpp's tensor map."""
    q, kv = heads * head_dim, heads_kv * head_dim
    out = [("token_embd.weight", (hidden, vocab)), ("output_norm.weight", (hidden,))]
    if not tied:
        out.append(("output.weight", (hidden, vocab)))
    for i in range(layers):
        out += [
            (f"blk.{i}.{name}", ne)
            for name, ne in (
                ("attn_k.weight", (hidden, kv)),
                ("attn_norm.weight", (hidden,)),
                ("attn_output.weight", (q, hidden)),
                ("attn_q.weight", (hidden, q)),
                ("attn_v.weight", (hidden, kv)),
                ("ffn_down.weight", (inner, hidden)),
                ("ffn_gate.weight", (hidden, inner)),
                ("ffn_norm.weight", (hidden,)),
                ("ffn_up.weight", (hidden, inner)),
            )
        ]
    return out


@st.composite
def models(draw):
    heads_kv = draw(st.integers(1, 4))
    widths = st.sampled_from([1, 2, 32, 48, 64, 96, 256, 320, 512, 5120])
    return {
        "hidden": draw(widths),
        "inner": draw(widths),
        "layers": draw(st.one_of(st.integers(1, 100), st.just(80))),
        "heads": heads_kv * draw(st.integers(1, 8)),
        "heads_kv": heads_kv,
        "head_dim": draw(st.sampled_from([2, 16, 32, 64, 128])),
        "vocab": draw(st.sampled_from([1, 320])),
        "tied": draw(st.booleans()),
    }


@st.composite
def options(draw, out_type):
    """Options of llama-quantize that say something about this out type."""
    out = {"pure": draw(st.booleans())}
    for name in ("token_embedding_type", "output_tensor_type"):
        out[name] = draw(st.none() | st.sampled_from(FREE_TYPES))
    out["leave_output_tensor"] = out["output_tensor_type"] is None and draw(st.booleans())
    patterns = st.sampled_from(
        ["attn_v", "ffn_down", r"blk\.[0-3]\.ffn", r"\.1[0-9]?\.", "weight$", "embd", "^output"]
    )
    if out_type not in FLOATS:
        pairs = st.lists(st.tuples(patterns, st.sampled_from(FREE_TYPES)), max_size=3)
        out["tensor_types"] = draw(pairs)
    return out


@settings(max_examples=400, deadline=None)
@given(models(), st.sampled_from(OUT_TYPES), st.sampled_from(["mistral3", "llama"]), st.data())
def test_types_as_llama_cpp(model, out_type, arch, data):
    tensors = tensors_of(**model)
    chosen = data.draw(options(out_type) if data.draw(st.booleans()) else st.just({}))
    pairs = chosen.pop("tensor_types", [])
    quant = quantization(out_type, tensor_types=[f"{n}={t}" for n, t in pairs], **chosen)
    shape = ModelShape(arch, model["layers"], model["heads"], model["heads_kv"])
    try:
        ours = assign_types(quant, shape, [Unquantized(n, ne) for n, ne in tensors])
    except OptionError:
        # llama.cpp has no fallback for the two types that are asked for by tensor.
        asked = [chosen.get("token_embedding_type"), chosen.get("output_tensor_type")]
        assert any(t and model["hidden"] % WEIGHT_TYPES[t].block for t in asked)
        return
    theirs = llama_quant.types(
        arch,
        {
            "n_embd": model["hidden"],
            "n_ff": model["inner"],
            "n_layer": model["layers"],
            "n_head": model["heads"],
            "n_head_kv": model["heads_kv"],
        },
        tensors,
        FILE_TYPES[out_type],
        tensor_types=pairs,
        **chosen,
    )
    assert {n: t.id for (n, _), t in zip(tensors, ours, strict=True)} == theirs


def compare(tmp_path, folder, outtype, theirs=None, **ours):
    """Converts and quantizes; equal types, bytes and keys."""
    if not (tmp_path / "f32.gguf").exists():
        write_base(folder, tmp_path / "f32.gguf", "f32")
    write_base(folder, tmp_path / "ours.gguf", outtype, force=True, **ours)
    llama_quant.quantize(
        tmp_path / "f32.gguf", tmp_path / "theirs.gguf", FILE_TYPES[outtype], **(theirs or {})
    )
    mine = read_sardine.tensors(tmp_path / "ours.gguf")
    other = read_sardine.tensors(tmp_path / "theirs.gguf")
    kinds = {k: t.tensor_type.name for k, t in mine.items()}
    assert kinds == {k: t.tensor_type.name for k, t in other.items()}
    for key, tensor in mine.items():
        np.testing.assert_array_equal(tensor.data, other[key].data, err_msg=key)
    keys = [read_sardine.keys(tmp_path / f"{n}.gguf") for n in ("ours", "theirs")]
    assert keys[0] == keys[1]
    return kinds


@pytest.mark.parametrize("name", SHAPES)
def test_bytes_as_llama_cpp(tmp_path, name):
    folder = tiny_base(tmp_path / "m", tokenizer=False, dtype=torch.bfloat16, **SHAPES[name])
    for outtype in OUT_TYPES:
        compare(tmp_path, folder, outtype)


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"leave_output_tensor": True},
        {"token_embedding_type": "q4_0", "output_tensor_type": "bf16"},
        {"tensor_types": [("blk.0.attn_v", "q8_0"), ("attn_(v|k)", "f16"), ("FFN_UP", "iq3_s")]},
    ],
)
def test_options_as_llama_cpp(tmp_path, options):
    folder = tiny_base(tmp_path / "m", tokenizer=False, hidden=256, inner=256, heads=16, layers=9)
    pairs = options.get("tensor_types", [])
    ours = {**options, "tensor_types": [f"{n}={t}" for n, t in pairs]}
    # llama-quantize puts NAME into lower case before it calls the library.
    theirs = {**options, "tensor_types": [(n.lower(), t) for n, t in pairs]}
    kinds = compare(tmp_path, folder, "q4_k_m", theirs, **ours)
    assert kinds != compare(tmp_path, folder, "q4_k_m")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_tensor_is_left_as_stored(tmp_path, dtype):
    folder = tiny_base(tmp_path / "m", tokenizer=False, dtype=dtype)
    report = write_base(folder, tmp_path / "o.gguf", "q8_0", leave_output_tensor=True)
    kind = {t.name: report.type_names[t.type] for t in report.tensors}["output.weight"]
    assert kind == {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]


def test_rule_at_the_published_depth():
    """40 layers: 5 first, 5 last and each third between are the sensitive ones."""
    tensors = [Unquantized(f"blk.{i}.ffn_down.weight", (16384, 5120)) for i in range(40)]
    types = assign_types(quantization("q4_k_m"), ModelShape("mistral3", 40, 32, 8), tensors)
    more = [i for i, t in enumerate(types) if t.name == "q6_k"]
    assert more == [*range(5), *range(7, 35, 3), *range(35, 40)]


@pytest.mark.parametrize(
    ("outtype", "options", "words"),
    [
        ("q5_k", {}, "outtype 'q5_k': expected f32, f16"),
        ("f16", {"tensor_types": ["attn_v=q8_0"]}, "outtype f16 keeps every matrix in f16"),
        ("q8_0", {"tensor_types": ["attn_v"]}, "expected NAME=TYPE"),
        ("q8_0", {"tensor_types": ["=q8_0"]}, "expected NAME=TYPE"),
        ("q8_0", {"tensor_types": ["attn_v=q9"]}, "'q9' is no type"),
        ("q8_0", {"tensor_types": ["attn_(v=q8_0"]}, "is not a regular expression"),
        ("q8_0", {"token_embedding_type": "i32"}, "'i32' is no type"),
        ("q8_0", {"token_embedding_type": "q4_k"}, "not whole blocks of 256"),
        ("q8_0", {"output_tensor_type": "q6_k"}, "not whole blocks of 256"),
        ("q8_0", {"output_tensor_type": "f16", "leave_output_tensor": True}, "expected one of"),
        ("q8_0", {"token_embedding_type": "iq2_xs"}, "not whole blocks of 256"),
    ],
)
def test_wrong_options(base, tmp_path, outtype, options, words):
    with pytest.raises(OptionError, match=words.replace("(", r"\(")):
        write_base(base, tmp_path / "o.gguf", outtype, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["iq2_xxs", "iq3_xxs", "iq1_m"])
def test_types_that_need_importance(tmp_path, kind):
    folder = tiny_base(tmp_path / "m", tokenizer=False, hidden=256, inner=256)
    with pytest.raises(OptionError, match=rf"{kind} of blk\.0\.ffn_up\.weight needs an importance"):
        write_base(folder, tmp_path / "o.gguf", "q8_0", tensor_types=[f"ffn_up={kind}"])


def test_options_that_change_nothing_are_named(base, tmp_path):
    tied = tiny_base(tmp_path / "tied", tokenizer=False, tied=True)
    report = write_base(
        tied,
        tmp_path / "o.gguf",
        "q8_0",
        tensor_types=["atn_v=q4_0"],
        leave_output_tensor=True,
        dry_run=True,
    )
    warnings = "\n".join(report.warnings)
    assert "atn_v=q4_0: no matrix has such a name" in warnings
    assert "leave output tensor" in warnings


def test_a_gguf_base_takes_no_options(base, tmp_path):
    write_base(base, tmp_path / "base.gguf", "q8_0")
    with pytest.raises(OptionError, match=r"pure True: the base .* is a GGUF file"):
        write_base(tmp_path / "base.gguf", tmp_path / "o.gguf", pure=True)
    with pytest.raises(TypeError, match="purr"):
        write_base(base, tmp_path / "o.gguf", purr=True)


TIED_UNUSED = {
    "f16": {"out_type": "f16"},
    "pure": {"out_type": "q8_0", "pure": True},
    "the embedding's own": {"out_type": "q8_0", "token_embedding_type": "f16"},
    "a pattern": {"out_type": "q8_0", "tensor_types": ["token_embd=f16"]},
}


@pytest.mark.parametrize("name", TIED_UNUSED)
def test_output_type_of_a_tied_model_is_told_where_unused(tmp_path, name):
    options = dict(TIED_UNUSED[name])
    folder = tiny_base(tmp_path / "m", tied=True, layers=1, tokenizer=False)
    report = write_base(
        folder, tmp_path / "o", options.pop("out_type"), dry_run=True,
        output_tensor_type="f32", **options,
    )  # fmt: skip
    assert any("output tensor type f32" in w for w in report.warnings)
    fits = write_base(folder, tmp_path / "o", "q8_0", dry_run=True, output_tensor_type="f32")
    assert not any("output tensor type" in w for w in fits.warnings)
    with pytest.raises(OptionError, match="whole blocks"):
        write_base(folder, tmp_path / "o", "q8_0", dry_run=True, output_tensor_type="q4_k")


@pytest.mark.parametrize(
    ("patterns", "more", "told"),
    [
        (["ffn=q8_0", "ffn_down=q4_0"], {}, "ffn_down"),
        (["token_embd=q8_0"], {"token_embedding_type": "f16"}, "token_embd"),
        (["ffn_down=q8_0", "ffn=q4_0"], {}, None),
    ],
)
def test_patterns_that_others_leave_nothing(tmp_path, patterns, more, told):
    folder = tiny_base(tmp_path / "m", layers=1, tokenizer=False)
    report = write_base(folder, tmp_path / "o", "q4_0", dry_run=True, tensor_types=patterns, **more)
    found = [w for w in report.warnings if "decide all" in w]
    assert len(found) == (told is not None)
    assert all(f"tensor type {told}=" in w for w in found)


@pytest.mark.parametrize("name", ["attn_[[:digit:]]", "[[:alpha:]]+", "attn_(", "[a||b]"])
def test_patterns_of_another_syntax_are_refused(name, recwarn):
    with pytest.raises(OptionError, match="Python's syntax"):
        quantization("q8_0", tensor_types=[f"{name}=q4_0"])
    assert not recwarn.list
