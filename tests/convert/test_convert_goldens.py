"""Our metadata and tensors against those of llama.cpp's own converter, key by key.

goldens/*.json is what it wrote; goldens/make_goldens.py makes them again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_folders import CASES, build, digest
from make_checkpoint import TEMPLATE
from sardine_gguf.convert import write_base

GOLDENS = Path(__file__).parent / "goldens"
ATTN = "mistral3.rope.scaling.attn_factor"
CHAT = "tokenizer.chat_template"


def m(scale):
    """The magnitude of YaRN at the cases' factor."""
    return 1 + 0.1 * scale * np.log(16)


def f32(value):
    return ["FLOAT32", float(np.float32(value))]


# What we write otherwise, and why: case -> {key: ours, None where we write nothing}. Nothing else
# may differ, neither keys nor types nor values nor tensors.
DIFFERENCES = {
    # transformers' magnitude is m(mscale) / m(mscale_all_dim). libllama computes m(1) / m(all_dim)
    # whatever mscale is, so that a file without our attn_factor is another model.
    "mscale_all_dim-half": {ATTN: f32(m(0.5) / m(0.5) / (m(1) / m(0.5)))},
    "mscale-differs": {ATTN: f32(m(0.707) / m(1))},
    # They do not look into generation_config.json; a text without an end is worse than an id.
    "ids-elsewhere": {"tokenizer.ggml.padding_token_id": ["UINT32", 7]},
    # Without mscale transformers takes m(1) alone.
    "no-mscale": {ATTN: f32(m(1))},
    # attention_factor is the whole magnitude; libllama does not read yarn_attn_factor.
    "attention_factor": {ATTN: f32(0.8)},
    # Theirs is a template that they ship for the tokenizer's version, or the name of one that only
    # llama.cpp expands. Ours is the folder's own, or none: the runtime then has one for Mistral.
    "tekken-v11": {CHAT: ["STRING", TEMPLATE]},
    "tekken-v3": {CHAT: None},
    "params-llama": {CHAT: None},
    "params-tied-q8_0": {CHAT: None},
    # apply_scale false means magnitude 1, which they write as a log multiplier; in the
    # architecture llama no reader uses it.
    "params-llama-yarn": {"llama.rope.scaling.attn_factor": f32(1 / m(1))},
}

# Folders that llama.cpp's converter refuses; ours equal another case but for these keys.
REFUSED = {
    # libllama reads a missing multiplier and 0 alike.
    "no-mscale_all_dim": ("mscale_all_dim-0", {"mistral3.rope.scaling.yarn_log_multiplier": None}),
    "rope-default": (
        "mscale_all_dim-0",
        {
            f"mistral3.rope.scaling.{key}": None
            for key in ("type", "factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier")
        },
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_same_as_llama_cpp(tmp_path, case):
    golden = json.loads((GOLDENS / f"{case.name}.json").read_text())
    changes = DIFFERENCES.get(case.name, {})
    if case.name in REFUSED:
        assert list(golden) == ["error"]
        other, changes = REFUSED[case.name]
        golden = json.loads((GOLDENS / f"{other}.json").read_text())
        case = replace(case, name=other)
    write_base(build(case, tmp_path), tmp_path / "o.gguf", case.outtype)
    ours = json.loads(json.dumps(digest(tmp_path / "o.gguf")))
    for key, value in changes.items():
        assert golden["keys"].get(key) != value, f"{key} is no difference any more"
        golden["keys"].pop(key, None)
        if value is not None:
            golden["keys"][key] = value
    assert ours["keys"] == golden["keys"]
    assert ours["tensors"] == golden["tensors"]


def test_every_golden_has_its_case():
    assert {p.stem for p in GOLDENS.glob("*.json")} == {case.name for case in CASES}
    assert set(DIFFERENCES) | set(REFUSED) <= {case.name for case in CASES}
