"""Metadata and logits of converted bases against transformers, through libllama."""

from __future__ import annotations

import json
import math

import gguf
import numpy as np
import pytest
import read_sardine
import torch
from make_checkpoint import YARN, srde_checkpoint, tiny_base
from sardine_gguf.convert import convert, write_base
from sardine_gguf.convert.hf_rope import rope_metadata
from sardine_gguf.errors import FormatError


def reader_magnitude(kv):
    """What libllama makes of the keys (src/llama-context.cpp, extension factor 1)."""
    s = "mistral3.rope.scaling."
    if s + "type" not in kv:
        return 1.0
    factor, log_mul = kv[s + "factor"], kv.get(s + "yarn_log_multiplier", 0.0)

    def m(scale):
        return 1 + 0.1 * scale * math.log(factor) if factor > 1 else 1.0

    return m(1) / (m(log_mul) if log_mul else 1) * kv.get(s + "attn_factor", 1.0)


def rope(**changes):
    out = {**YARN, **changes}
    return {k: v for k, v in out.items() if v != "absent"}


ROPES = {
    "published": rope(),
    "other multipliers": rope(mscale_all_dim=0.5),
    "mscale": rope(mscale=0.707, mscale_all_dim=1.0),
    "no mscale": rope(mscale="absent"),
    "no mscale_all_dim": rope(mscale_all_dim="absent"),
    "neither": rope(mscale="absent", mscale_all_dim="absent"),
    "zero mscale": rope(mscale=0.0, mscale_all_dim=1.0),
    "attention_factor": rope(attention_factor=0.8),
    "betas": rope(beta_fast=16.0, beta_slow=2.0),
    "no betas": rope(beta_fast="absent", beta_slow="absent"),
    "factor 1": rope(factor=1.0),
    "default": {"rope_type": "default", "rope_theta": 500.0, "llama_4_scaling_beta": 0.2,
                "original_max_position_embeddings": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", ROPES)
def test_rope_means_the_same(tmp_path, name):
    """Magnitude and temperature as numbers, then the logits of libllama."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = tiny_base(tmp_path / "m", rope=ROPES[name], head_dim=32, layers=2)
    write_base(folder, tmp_path / "m.gguf", "f32")
    kv = read_sardine.keys(tmp_path / "m.gguf")
    config = AutoConfig.from_pretrained(folder)
    if ROPES[name]["rope_type"] == "yarn":
        _, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        assert reader_magnitude(kv) == pytest.approx(magnitude, rel=1e-6)
    beta = ROPES[name]["llama_4_scaling_beta"]
    assert kv["mistral3.attention.temperature_scale"] == pytest.approx(beta)
    compare_logits(folder, tmp_path / "m.gguf")


def compare_logits(folder, path, n=150):
    import llama_cpp
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(3).integers(8, 320, n).tolist()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    llm = llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
        type_k=0, type_v=0, yarn_ext_factor=-1.0, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0,
    )  # fmt: skip
    llm.eval(tokens)
    found = np.array(llm.scores[:n])
    llm.close()
    # Positions beyond the original context use the extended frequencies and the temperature.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    assert np.abs(found - expected).mean() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("wrapped", ["old", "new"])
@pytest.mark.parametrize("tied", [False, True])
def test_wrapped_model_is_the_text_model(base, tmp_path, wrapped, tied):
    plain = tiny_base(tmp_path / "a" / "m", tied=tied)
    inside = tiny_base(tmp_path / "b" / "m", tied=tied, wrapped=wrapped)
    file = srde_checkpoint(tmp_path / "s.pt", inside)
    convert(plain, file, tmp_path / "a.gguf", outtype="f16")
    report = convert(inside, file, tmp_path / "b.gguf", outtype="f16")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert "2 tensors of vision_tower" in "\n".join(report.notes)
    assert "1 tensors of multi_modal_projector" in "\n".join(report.notes)
    assert ("output.weight" in read_sardine.tensors(tmp_path / "a.gguf")) != tied


def test_sharded_model_is_the_same(tmp_path):
    whole = tiny_base(tmp_path / "a" / "m")
    parts = tiny_base(tmp_path / "b" / "m", max_shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    write_base(whole, tmp_path / "a.gguf")
    write_base(parts, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_grouped_heads_and_tied_embeddings(tmp_path):
    folder = tiny_base(tmp_path / "m", heads=8, heads_kv=2, head_dim=24, tied=True, layers=2)
    write_base(folder, tmp_path / "m.gguf", "f32")
    compare_logits(folder, tmp_path / "m.gguf", n=40)


def test_older_spelling_of_the_rope(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    new = rope_metadata("mistral3", config, 16, 256, "")
    params = config.pop("rope_parameters")
    config["rope_theta"] = params.pop("rope_theta")
    params["type"] = params.pop("rope_type")
    assert rope_metadata("mistral3", {**config, "rope_scaling": params}, 16, 256, "") == new


BAD_ROPES = {
    "linear": ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, "rope_type"),
    "llama3": ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}, "rope_type"),
    "truncate": (rope(truncate=False), "truncate"),
    "partial": (rope(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "unknown": (rope(short_factor=[1.0]), "short_factor"),
    "nested": ({"full_attention": rope(), "sliding_attention": rope()}, "rope_theta"),
    "factor": (rope(factor=0.5), "factor"),
    "factor text": (rope(factor="4"), "factor"),
    "factor true": (rope(factor=True), "factor"),
    "huge": (rope(factor=10**400), "factor"),
    "theta": (rope(rope_theta=1.0), "rope_theta"),
    "no theta": (rope(rope_theta="absent"), "rope_theta"),
    "original": (rope(original_max_position_embeddings=0), "original_max_position"),
    "ramp": (rope(rope_theta=1.5, beta_fast=0.001), "ramp"),
    "beta without context": ({"rope_type": "default", "rope_theta": 1e4,
                              "llama_4_scaling_beta": 0.1}, "original_max_position"),
    "empty": ({}, "rope_theta"),
    "list": ([1], "rope_parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROPES)
def test_rope_that_a_reader_would_not_compute(name):
    parameters, field = BAD_ROPES[name]
    with pytest.raises(FormatError, match=field):
        rope_metadata("mistral3", {"rope_parameters": parameters}, 16, 256, "config.json")


def test_special_tokens_are_those_of_gguf(base, tmp_path):
    write_base(base, tmp_path / "m.gguf", "f16")
    kv = read_sardine.keys(tmp_path / "m.gguf")
    special = gguf.SpecialVocab(base, load_merges=True)
    assert kv["tokenizer.ggml.merges"] == special.merges
    assert kv["tokenizer.ggml.bos_token_id"] == special.special_token_ids["bos"] == 1
    assert kv["tokenizer.chat_template"] == special.chat_template
    assert kv["tokenizer.ggml.add_bos_token"] is True
    assert kv["tokenizer.ggml.pre"] == "tekken"
    assert kv["tokenizer.ggml.token_type"][:9] == [3] * 8 + [1]


TEXTS = ["Hello there", "the tea is on  \n\nthe shore 123 1234", "ÀÉ ça, naïve — 東京 🦙 don't",
         "THEN Then then\tinto"]  # fmt: skip


def test_tokens_are_those_of_transformers(base, tmp_path):
    import llama_cpp
    from transformers import PreTrainedTokenizerFast

    write_base(base, tmp_path / "m.gguf", "f16")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(base / "tokenizer.json"))
    llm = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    for text in TEXTS:
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert llm.tokenize(text.encode(), add_bos=False) == expected, text
    llm.close()


def edit(folder, name, change):
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("regex", "byte_level", "ignore", "pre", "warned"),
    [
        (None, True, False, "gpt-2", False),
        ("llama", False, True, "llama-bpe", False),
        ("tekken", False, False, "tekken", True),
        ("[a-z]+", False, True, "tekken", True),
    ],
)
def test_splitting_rule(tmp_path, regex, byte_level, ignore, pre, warned):
    from sardine_gguf.convert.tekken import PATTERN
    from sardine_gguf.convert.tokenizer_rules import _LLAMA3

    folder = tiny_base(tmp_path / "m", layers=1)
    pattern = {"llama": _LLAMA3, "tekken": PATTERN}.get(regex, regex)

    def change(data):
        steps = [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": byte_level}]
        if pattern:
            steps.insert(
                0, {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
            )
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        data["model"]["ignore_merges"] = ignore

    edit(folder, "tokenizer.json", change)
    file = srde_checkpoint(tmp_path / "s.pt", folder)
    report = convert(folder, file, tmp_path / "o.gguf", outtype="f16")
    assert read_sardine.keys(tmp_path / "o.gguf")["tokenizer.ggml.pre"] == pre
    assert bool(report.warnings) == warned


def test_missing_ids_are_padded(tmp_path):
    folder = tiny_base(tmp_path / "m", layers=1, vocab=400)

    def change(data):
        last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
        del data["model"]["vocab"][last]
        data["model"]["merges"] = ["{} {}".format(*m) for m in data["model"]["merges"]
                                   if "".join(m) != last]  # fmt: skip
        data["added_tokens"].append({"id": 398, "content": "\u2581user", "special": False})
        data["added_tokens"].append({"id": 399, "content": "<|x|>", "special": False})

    edit(folder, "tokenizer.json", change)
    file = srde_checkpoint(tmp_path / "s.pt", folder)
    report = convert(folder, file, tmp_path / "o.gguf", outtype="f16")
    kv = read_sardine.keys(tmp_path / "o.gguf")
    tokens, types = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 400
    assert tokens[397:] == ["[PAD397]", " user", "<|x|>"]
    assert types[397:] == [5, 4, 3]
    assert any("no token" in w for w in report.warnings)


def test_without_a_tokenizer(tmp_path):
    folder = tiny_base(tmp_path / "m", layers=1, tokenizer=False)
    file = srde_checkpoint(tmp_path / "s.pt", folder)
    report = convert(folder, file, tmp_path / "o.gguf", outtype="f16")
    kv = read_sardine.keys(tmp_path / "o.gguf")
    assert kv["tokenizer.ggml.model"] == "none"
    assert kv["mistral3.vocab_size"] == 320
    assert any("token ids alone" in w for w in report.warnings)


def test_general_keys(tmp_path):
    folder = tiny_base(tmp_path / "Ministral-3-Tiny-1B", layers=1)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Title\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.5, "top_k": 40, "top_p": 0.9, "eos_token_id": [2, 3]})
    )
    write_base(folder, tmp_path / "m.gguf", "q8_0")
    kv = read_sardine.keys(tmp_path / "m.gguf")
    assert kv["general.architecture"] == "mistral3"
    assert kv["general.name"] == "Ministral 3 Tiny 1B"
    assert kv["general.license"] == "apache-2.0"
    assert kv["general.tags"] == ["x"]
    assert kv["general.sampling.temp"] == pytest.approx(0.5)
    assert kv["general.sampling.top_k"] == 40
    assert kv["general.file_type"] == 7
    assert kv["general.quantization_version"] == 2


def test_extended_file_has_the_base_keys(base, srde, tmp_path):
    write_base(base, tmp_path / "base.gguf", "q4_k_m")
    convert(base, srde, tmp_path / "o.gguf")
    before, after = (
        read_sardine.keys(tmp_path / "base.gguf"),
        read_sardine.keys(tmp_path / "o.gguf"),
    )
    assert {k: v for k, v in after.items() if not k.startswith("sardine.")} == before


BOTH = {
    "differ in the kind": ({"type": "linear", "factor": 8.0}, False),
    "differ in a number": ({**YARN, "factor": 8.0}, False),
    "differ in the base": ({**YARN, "rope_theta": 5.0}, False),
    "alike": (dict(YARN), True),
    "alike, in the older spelling": (
        {k: v for k, v in YARN.items() if k not in ("rope_type", "rope_theta")} | {"type": "yarn"},
        True,
    ),
}


@pytest.mark.parametrize("name", BOTH)
def test_two_sets_of_rope_parameters(name):
    """transformers takes rope_scaling, and another reader need not."""
    older, same = BOTH[name]
    config = {"rope_parameters": dict(YARN), "rope_scaling": older}
    if same:
        alone = rope_metadata("mistral3", {"rope_parameters": dict(YARN)}, 32, 256, "c")
        assert rope_metadata("mistral3", config, 32, 256, "c") == alone
        return
    with pytest.raises(FormatError, match="rope_scaling"):
        rope_metadata("mistral3", config, 32, 256, "c")


SAMPLING = {
    '{"temperature": -1}': "temp",
    '{"temperature": true}': "temp",
    '{"top_p": 7}': "top_p",
    '{"min_p": -0.5}': "min_p",
    '{"top_k": 10000000000}': "top_k",
    '{"repetition_penalty": 0}': "penalty_repeat",
}


@pytest.mark.parametrize("text", SAMPLING)
def test_sampling_defaults_that_no_sampler_takes(tmp_path, text):
    from sardine_gguf import Sardine

    folder = tiny_base(tmp_path / "m", layers=1)
    good = {"top_k": 11} if "top_k" not in text else {"top_p": 0.5}
    (folder / "generation_config.json").write_text(json.dumps({**json.loads(text), **good}))
    report = write_base(folder, tmp_path / "o.gguf", "f16")
    warned = [w for w in report.warnings if "generation_config.json" in w]
    assert len(warned) == 1
    assert f": {SAMPLING[text]} is " in warned[0]
    kv = read_sardine.keys(tmp_path / "o.gguf")
    assert f"general.sampling.{SAMPLING[text]}" not in kv
    assert [k for k in kv if k.startswith("general.sampling.")] == [
        f"general.sampling.{next(iter(good))}"
    ]
    Sardine(tmp_path / "o.gguf").close()
