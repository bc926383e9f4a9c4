"""Mistral's own format: params.json, consolidated.safetensors, tekken.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import mistral_common
import numpy as np
import pytest
import read_sardine
import torch
from make_checkpoint import TEMPLATE, srde_checkpoint, tiny_base
from make_native import YARN, tiny_native, tiny_tekken
from mistral_common.tokens.tokenizers.base import SpecialTokens
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from safetensors.torch import load_file, save_file
from sardine_gguf import Sardine
from sardine_gguf.convert import convert, write_base
from sardine_gguf.convert.cli import main
from sardine_gguf.convert.gguf_file import pack_header
from sardine_gguf.convert.tekken import _OLD_SPECIAL, tekken_metadata
from sardine_gguf.errors import FormatError
from test_convert_metadata import TEXTS, reader_magnitude


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return tiny_native(tmp_path_factory.mktemp("native") / "m", inner=100)


def twin_of(folder):
    return folder.parent / "hf" / folder.name


OPTIONS = {
    "plain": {},
    "tied": {"tied": True},
    "vision": {"vision": True},
    "many heads": {"heads": 8, "heads_kv": 1, "head_dim": 24},
    "bf16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_tensors_are_those_of_the_other_format(tmp_path, name):
    folder = tiny_native(tmp_path / "m", **OPTIONS[name])
    write_base(folder, tmp_path / "native.gguf", "f32")
    write_base(twin_of(folder), tmp_path / "hf.gguf", "f32")
    ours, theirs = (read_sardine.tensors(tmp_path / f"{n}.gguf") for n in ("native", "hf"))
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        np.testing.assert_array_equal(tensor.data, theirs[key].data, key)
    kv, other = (read_sardine.keys(tmp_path / f"{n}.gguf") for n in ("native", "hf"))
    assert {k: v for k, v in kv.items() if k.startswith("mistral3.")} == {
        k: v for k, v in other.items() if k.startswith("mistral3.")
    }


def test_fp8(tmp_path):
    folder = tiny_native(tmp_path / "m", params={"quantization": {"qformat_weight": "fp8_e4m3",
                                                                  "qscheme_act": "TENSOR"}})  # fmt: skip
    tensors = load_file(folder / "consolidated.safetensors")
    plain = dict(tensors)
    for name, weight in list(tensors.items()):
        if ".attention." in name or ".feed_forward." in name:
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            plain[name] = tensors[name].float() * scale
            stem = name.removesuffix("weight")
            tensors[stem + "qscale_weight"] = scale
            tensors[stem + "qscale_act"] = torch.tensor(0.5)
    save_file(plain, folder / "consolidated.safetensors")
    write_base(folder, tmp_path / "plain.gguf", "f32")
    save_file(tensors, folder / "consolidated.safetensors")
    write_base(folder, tmp_path / "fp8.gguf", "f32")
    assert (tmp_path / "fp8.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_sharded(native, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(native, folder)
    tensors = load_file(folder / "consolidated.safetensors")
    (folder / "consolidated.safetensors").unlink()
    mapping = {}
    for i in range(2):
        shard = f"consolidated-{i + 1:05}-of-00002.safetensors"
        mine = {k: tensors[k] for k in sorted(tensors)[i::2]}
        save_file(mine, folder / shard)
        mapping.update(dict.fromkeys(mine, shard))
    index = {"weight_map": mapping}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    write_base(native, tmp_path / "whole.gguf")
    write_base(folder, tmp_path / "sharded.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "sharded.gguf").read_bytes()


def test_tensors_for_hugging_face_come_first(native, tmp_path):
    """Published folders hold both formats; config.json alone does not make the other one."""
    both = tmp_path / "m"
    shutil.copytree(native, both)
    shutil.copy(twin_of(native) / "config.json", both)
    write_base(both, tmp_path / "a.gguf")
    assert "tokenizer.ggml.scores" in read_sardine.keys(tmp_path / "a.gguf")
    shutil.copytree(twin_of(native), both, dirs_exist_ok=True)
    write_base(both, tmp_path / "both.gguf")
    write_base(twin_of(native), tmp_path / "hf.gguf")
    assert (tmp_path / "both.gguf").read_bytes() == (tmp_path / "hf.gguf").read_bytes()


@pytest.mark.parametrize("scaled", [False, True])
def test_magnitude_of_the_rope(tmp_path, scaled):
    """apply_scale says whether cos and sin grow by 1 + 0.1 ln(factor)."""
    for arch, scaling in (("mistral3", {}), ("llama", {"llama_4_scaling": None})):
        params = {"yarn": {**YARN, "apply_scale": scaled}, **scaling}
        folder = tiny_native(tmp_path / arch, params=params)
        write_base(folder, tmp_path / f"{arch}.gguf", "f16")
        kv = read_sardine.keys(tmp_path / f"{arch}.gguf")
        assert kv["general.architecture"] == arch
        if arch == "llama":  # whose readers do not know the log multiplier
            log_mul = kv.pop("llama.rope.scaling.yarn_log_multiplier")
            assert log_mul == (0.0 if scaled else 1.0)
            kv = {k.replace("llama.", "mistral3."): v for k, v in kv.items()}
        expected = 1 + 0.1 * np.log(4.0) if scaled else 1.0
        assert reader_magnitude(kv) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("arch", ["mistral3", "llama"])
def test_it_runs(tmp_path, arch):
    """Ours and libllama's logits of the same file agree."""
    import llama_cpp

    params = {} if arch == "mistral3" else {"llama_4_scaling": None}
    folder = tiny_native(tmp_path / "m", params=params)
    write_base(folder, tmp_path / "base.gguf", "f32")
    srde_checkpoint(tmp_path / "s.pt", twin_of(folder))
    convert(folder, tmp_path / "s.pt", tmp_path / "o.gguf", outtype="f32")
    tokens = list(range(20, 120))
    llm = llama_cpp.Llama(str(tmp_path / "base.gguf"), n_ctx=128, n_threads=1, logits_all=True,
                          verbose=False, type_k=0, type_v=0, yarn_ext_factor=-1.0,
                          yarn_beta_fast=-1.0, yarn_beta_slow=-1.0)  # fmt: skip
    llm.eval(tokens)
    expected = np.array(llm.scores[: len(tokens)])
    llm.close()
    with Sardine(tmp_path / "o.gguf", n_threads=1, n_ctx=128, delta_mode="off") as model:
        found = model.eval(tokens)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_context_without_a_number(tmp_path):
    folder = tiny_native(tmp_path / "m", params={"max_position_embeddings": None})
    srde_checkpoint(tmp_path / "s.pt", twin_of(folder))
    report = convert(folder, tmp_path / "s.pt", tmp_path / "o.gguf", outtype="f16")
    assert read_sardine.keys(tmp_path / "o.gguf")["mistral3.context_length"] == 128_000
    assert any("128000 tokens" in w for w in report.warnings)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "max_seq_len": 512}))
    write_base(folder, tmp_path / "b.gguf")
    assert read_sardine.keys(tmp_path / "b.gguf")["mistral3.context_length"] == 512


# tekken.json


def published(version):
    return Path(mistral_common.__file__).parent / "data" / f"tekken_{version}.json"


def against_gguf(folder, vocab_size):
    """Our metadata and gguf's MistralVocab, which asks mistral-common."""
    ours = tekken_metadata(folder / "tekken.json", "mistral3", vocab_size, [])
    theirs = gguf.MistralVocab(folder)
    tokens = list(theirs.all_tokens())
    assert ours["tokenizer.ggml.tokens"][1] == [t.decode() for t, _, _ in tokens]
    assert ours["tokenizer.ggml.scores"][1] == [s for _, s, _ in tokens]
    assert ours["tokenizer.ggml.token_type"][1] == [int(k) for _, _, k in tokens]
    assert ours["tokenizer.ggml.merges"][1] == theirs.extract_vocab_merges_from_model()
    for key, value in (("bos", theirs.bos_id), ("eos", theirs.eos_id), ("unknown", theirs.unk_id),
                       ("padding", theirs.pad_id)):  # fmt: skip
        assert ours[f"tokenizer.ggml.{key}_token_id"] == ("u32", value)
    assert ours["mistral3.vocab_size"] == ("u32", theirs.vocab_size)
    return ours


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13"])
def test_tekken_is_that_of_mistral_common(tmp_path, version):
    tiny_tekken(tmp_path, version=version)
    against_gguf(tmp_path, 320)


def test_old_files_have_no_special_tokens(tmp_path):
    tiny_tekken(tmp_path, version="v3", n_special=32)
    data = json.loads((tmp_path / "tekken.json").read_text())
    del data["special_tokens"]
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    against_gguf(tmp_path, 320)
    named = [t["token_str"] for t in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    assert list(_OLD_SPECIAL) == [t.value if isinstance(t, SpecialTokens) else t for t in named]


def test_the_published_vocabulary(tmp_path):
    """131072 tokens: equal lists, and libllama's tokens of texts are mistral-common's."""
    import llama_cpp

    shutil.copy(published("240911"), tmp_path / "tekken.json")
    kv = against_gguf(tmp_path, 131072)
    keys = {"block_count": 1, "context_length": 64, "embedding_length": 64,
            "feed_forward_length": 64, "attention.head_count": 1}  # fmt: skip
    kv = {"general.architecture": ("str", "mistral3"),
          **{f"mistral3.{k}": ("u32", v) for k, v in keys.items()},
          "mistral3.attention.layer_norm_rms_epsilon": ("f32", 1e-5), **kv}  # fmt: skip
    (tmp_path / "v.gguf").write_bytes(pack_header(kv, [], 32))
    llm = llama_cpp.Llama(str(tmp_path / "v.gguf"), vocab_only=True, verbose=False)
    tekken = Tekkenizer.from_file(tmp_path / "tekken.json")
    texts = [*TEXTS, "def f(x):\n\treturn x**2  # ÷ π\n\n\n", "  многое\u00a0ещё 12345", "\x00\x7f ",
             "".join(map(chr, range(32, 0x2A0)))]  # fmt: skip
    for text in texts:
        expected = tekken.encode(text, bos=False, eos=False)
        assert llm.tokenize(text.encode(), add_bos=False) == expected, text
    llm.close()


def test_tekken_beside_config_json(tmp_path):
    """tokenizer.json comes first in a folder for Hugging Face; without it tekken.json counts."""
    folder = tiny_base(tmp_path / "m")
    write_base(folder, tmp_path / "json.gguf")
    tiny_tekken(folder)
    write_base(folder, tmp_path / "both.gguf")
    assert (tmp_path / "json.gguf").read_bytes() == (tmp_path / "both.gguf").read_bytes()
    (folder / "tokenizer.json").unlink()
    write_base(folder, tmp_path / "tekken.gguf")
    kv = read_sardine.keys(tmp_path / "tekken.gguf")
    assert kv["tokenizer.ggml.tokens"][28:30] == ["Ā", "ā"]
    assert kv["tokenizer.chat_template"] == TEMPLATE


# Refused


def refuse(folder, srde, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    capsys.readouterr()
    assert main(["--base", str(folder), "--srde", str(srde), "-o", str(out / "o.gguf")]) == 3
    lines = [t for t in capsys.readouterr().err.splitlines() if not t.startswith("warning: ")]
    assert len(lines) == 1
    assert list(out.iterdir()) == []
    return lines[0]


PARAMS = {
    **{f"dim {v!r}": ({"dim": v}, "dim") for v in (0, -1, 2**31, "64", 64.0, True, 65, None, [])},
    "layers": ({"n_layers": 10**9}, "n_layers"),
    "fewer layers": ({"n_layers": 2}, "unknown tensors"),
    "more layers": ({"n_layers": 4}, "missing tensors"),
    "heads": ({"n_heads": 8}, "shape"),
    "kv heads": ({"n_kv_heads": 3}, "does not divide"),
    "head_dim": ({"head_dim": 15}, "even"),
    "vocab": ({"vocab_size": 319}, "shape"),
    "no vocab": ({"vocab_size": None}, "vocab_size"),
    "eps": ({"norm_eps": -1}, "norm_eps"),
    "context": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "experts": ({"moe": {"num_experts": 8}}, "moe"),
    "latent attention": ({"q_lora_rank": 8}, "q_lora_rank"),
    "window": ({"sliding_window": 4096}, "sliding_window"),
    "biases": ({"use_biases": True}, "use_biases"),
    "activation": ({"activation": "gelu"}, "activation"),
    "not causal": ({"causal": False}, "causal"),
    "values": ({"v_head_dim": 8}, "v_head_dim"),
    "quantization": ({"quantization": {"qformat_weight": "int8"}}, "fp8_e4m3"),
    "quantization list": ({"quantization": [1]}, "fp8_e4m3"),
    "theta": ({"rope_theta": 0.5}, "rope_theta"),
    "yarn list": ({"yarn": [1]}, "yarn"),
    "yarn empty": ({"yarn": {}}, "apply_scale"),
    "apply_scale": ({"yarn": {**YARN, "apply_scale": 1}}, "apply_scale"),
    "factor": ({"yarn": {**YARN, "factor": 0.5}}, "factor"),
    "no factor": ({"yarn": {k: v for k, v in YARN.items() if k != "factor"}}, "factor"),
    "original": ({"yarn": {**YARN, "original_max_position_embeddings": 32}}, "must be the same"),
    "no beta": ({"llama_4_scaling": {"original_max_position_embeddings": 64}}, "beta"),
    "scaling text": ({"llama_4_scaling": "x"}, "llama_4_scaling"),
    "betas of llama": ({"llama_4_scaling": None, "yarn": {**YARN, "beta": 16.0}}, "betas"),
    "tied although stored": ({"tied_embeddings": True}, "tied"),
}


@pytest.mark.parametrize("name", PARAMS)
def test_params(native, srde, tmp_path, capsys, name):
    changes, words = PARAMS[name]
    folder = tmp_path / "m"
    shutil.copytree(native, folder)
    params = {**json.loads((folder / "params.json").read_text()), **changes}
    params = {k: v for k, v in params.items() if v is not None}
    (folder / "params.json").write_text(json.dumps(params))
    assert words in refuse(folder, srde, tmp_path, capsys)


def test_files(native, srde, tmp_path, capsys):
    import os

    for name in ("params.json", "consolidated.safetensors", "tekken.json"):
        folder = tmp_path / name
        shutil.copytree(native, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "pipe" in refuse(folder, srde, tmp_path, capsys)
    folder = tmp_path / "m"
    shutil.copytree(native, folder)
    for text in ("", "{", "[]", "null", '{"a":1,"a":2}', "\xff", "[" * 100_000):
        for name in ("params.json", "tekken.json"):
            before = (folder / name).read_bytes()
            (folder / name).write_text(text, "latin-1")
            assert name in refuse(folder, srde, tmp_path, capsys)
            (folder / name).write_bytes(before)
    (folder / "consolidated.safetensors").unlink()
    assert "neither consolidated.safetensors nor" in refuse(folder, srde, tmp_path, capsys)
    (folder / "consolidated.safetensors").symlink_to(native / "consolidated.safetensors")
    assert "outside" in refuse(folder, srde, tmp_path, capsys)


def _vocab(change):
    return lambda d: change(d["vocab"])


TEKKENS = {
    "no config": (lambda d: d.pop("config"), "config"),
    "size": (lambda d: d["config"].update(default_vocab_size=321), "321"),
    "size 2^31": (lambda d: d["config"].update(default_vocab_size=2**31), "default_vocab_size"),
    "negative size": (lambda d: d["config"].update(default_vocab_size=-1), "default_vocab_size"),
    "text size": (lambda d: d["config"].update(default_vocab_size="320"), "default_vocab_size"),
    "special": (lambda d: d["config"].update(default_num_special_tokens=321), "special"),
    "more special": (lambda d: d["config"].update(default_num_special_tokens=8), "special"),
    "no bytes": (lambda d: d["config"].update(default_num_special_tokens=65), "256"),
    "no vocab": (lambda d: d.pop("vocab"), "vocab"),
    "short": (_vocab(lambda v: v.__delitem__(slice(280, None))), "vocab"),
    "hole": (_vocab(lambda v: v.pop(280)), "rank 280"),
    "rank twice": (_vocab(lambda v: v[281].update(rank=280)), "rank 281"),
    "rank is true": (_vocab(lambda v: v[1].update(rank=True, token_bytes="AQ")), "base64"),
    "not base64": (_vocab(lambda v: v[280].update(token_bytes="!!")), "base64"),
    "text beyond ascii": (_vocab(lambda v: v[280].update(token_bytes="\xe4")), "base64"),
    "number": (_vocab(lambda v: v[280].update(token_bytes=5)), "base64"),
    "no token_bytes": (_vocab(lambda v: v[280].pop("token_bytes")), "base64"),
    "empty token": (_vocab(lambda v: v[280].update(token_bytes="")), "0 bytes"),
    "long token": (_vocab(lambda v: v[280].update(token_bytes="AAAA" * 400)), "1200 bytes"),
    "token twice": (_vocab(lambda v: v[280].update(token_bytes=v[281]["token_bytes"])), "twice"),
    "byte": (_vocab(lambda v: v[7].update(token_bytes="aGVs")), "single bytes"),
    "orphan": (_vocab(lambda v: v[280].update(token_bytes="////")), "two others"),
    "a special one": (_vocab(lambda v: v[280].update(token_bytes="PHM+")), "special"),
    "entry list": (_vocab(lambda v: v.__setitem__(3, [])), "rank 3"),
    "specials list": (lambda d: d.update(special_tokens=[1]), "special_tokens"),
    "no specials": (lambda d: d.pop("special_tokens"), "special_tokens"),
    "special rank": (lambda d: d["special_tokens"][3].update(rank=4), "rank 3"),
    "special text": (lambda d: d["special_tokens"][3].update(token_str=4), "rank 3"),
    "special surrogate": (lambda d: d["special_tokens"][3].update(token_str="\ud800"), "rank 3"),
    "special twice": (lambda d: d["special_tokens"][3].update(token_str="<s>"), "twice"),
    "no <s>": (lambda d: d["special_tokens"][1].update(token_str="[X]"), "<s>"),
}


@pytest.mark.parametrize("name", TEKKENS)
def test_tekkens(native, srde, tmp_path, capsys, name):
    change, words = TEKKENS[name]
    folder = tmp_path / "m"
    shutil.copytree(native, folder)
    data = json.loads((folder / "tekken.json").read_text())
    change(data)
    (folder / "tekken.json").write_text(json.dumps(data))
    line = refuse(folder, srde, tmp_path, capsys)
    assert "tekken.json" in line
    assert words in line


def test_long_tokens_do_not_take_long(tmp_path):
    """A vocabulary of tokens of 1024 bytes each would cost minutes of searching."""
    tiny_tekken(tmp_path, vocab=100_000)
    data = json.loads((tmp_path / "tekken.json").read_text())
    import base64

    data["config"]["default_vocab_size"] = 2256 + 28
    data["vocab"] = data["vocab"][:256] + [
        {"rank": 256 + i, "token_bytes": base64.b64encode(f"{i:01024}".encode()).decode()}
        for i in range(2000)
    ]
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="too long"):
        tekken_metadata(tmp_path / "tekken.json", "mistral3", 2284, [])


def test_another_splitting_rule_is_said(tmp_path):
    tiny_tekken(tmp_path)
    data = json.loads((tmp_path / "tekken.json").read_text())
    data["config"]["pattern"] = "[a-z]+"
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    warnings: list[str] = []
    tekken_metadata(tmp_path / "tekken.json", "mistral3", 320, warnings)
    assert any("pattern" in w for w in warnings)
