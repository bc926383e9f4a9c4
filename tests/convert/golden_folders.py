"""Small model folders whose bytes depend on nothing but this file, and a digest of a GGUF file.

goldens/make_goldens.py gives the folders to llama.cpp's converter; the tests give them to ours.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
from make_checkpoint import TEMPLATE, tiny_tokenizer
from make_native import native_name, pairs_of_halves, tiny_tekken
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, HEADS, HEADS_KV, HEAD_DIM, VOCAB = 64, 96, 2, 4, 2, 24, 320
E4M3 = torch.float8_e4m3fn

YARN = {"rope_type": "yarn", "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0,
        "original_max_position_embeddings": 16, "max_position_embeddings": 256,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1}  # fmt: skip
PARAMS_YARN = {"original_max_position_embeddings": 16, "factor": 16.0, "apply_scale": False,
               "beta": 32, "alpha": 1}  # fmt: skip
CARD = """---
license: apache-2.0
library_name: vllm
language: [en, fr]
base_model:
- mistralai/Ministral-3-14B-Base-2512
tags: [mistral-common]
---
# A title
"""
GENERATION = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "min_p": 0.01,
              "repetition_penalty": 1.1, "max_length": 256, "bos_token_id": 1, "eos_token_id": 2,
              "pad_token_id": 7, "do_sample": True}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A folder.

    Attributes:
        name: of the folder, from which the model's name is read.
        native: Mistral's format. wrapped: "", "old" or "new", as tiny_base has it.
        rope: changes to rope_parameters, or to yarn of params.json; None takes a key away.
        config: changes to config.json or params.json. fp8: None, "tensor" or "block".
        tokenizer: "json", "tekken" or "". files: more files, by their paths. edits: changes to
            JSON files; None takes a key away.
    """

    name: str
    native: bool = False
    wrapped: str = ""
    tied: bool = False
    dtype: torch.dtype = torch.bfloat16
    outtype: str = "f16"
    rope: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    fp8: str | None = None
    tokenizer: str = "json"
    version: str = "v13"
    files: dict[str, str] = field(default_factory=dict)
    edits: dict[str, dict[str, Any]] = field(default_factory=dict)


def template(*single: str) -> dict[str, Any]:
    """A TemplateProcessing of these tokens around the text A, and of the same for two texts."""

    def pieces(parts: tuple[str, ...]) -> list[dict[str, Any]]:
        return [{"Sequence" if p in "AB" else "SpecialToken": {"id": p, "type_id": 0}}
                for p in parts]  # fmt: skip

    pair = (*single[: single.index("A") + 1], "</s>", "B", *single[single.index("A") + 1 :])
    names = {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}
    return {"type": "TemplateProcessing", "single": pieces(single), "pair": pieces(pair),
            "special_tokens": {k: {"id": k, "ids": [v], "tokens": [k]}
                               for k, v in names.items()}}  # fmt: skip


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
              "use_regex": True}  # fmt: skip
POST = {
    "none": None,
    "byte-level": BYTE_LEVEL,
    "sequence": {"type": "Sequence", "processors": [BYTE_LEVEL, template("<s>", "A")]},
    "bos-eos": template("<s>", "A", "</s>"),
    "eos": template("A", "</s>"),
    "other-first": template("[INST]", "A"),
    "roberta": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
                "trim_offsets": True, "add_prefix_space": False},
}  # fmt: skip

JINJA = {"chat_template.jinja": TEMPLATE}
CASES = [
    Case("Ministral-3-14B-Reasoning-2512", files={
        "README.md": CARD, "generation_config.json": json.dumps(GENERATION), **JINJA}),
    Case("tied-f32", tied=True, outtype="f32", dtype=torch.float32),
    Case("q8_0", outtype="q8_0"),
    Case("bf16", outtype="bf16"),
    Case("mscale_all_dim-0", rope={"mscale_all_dim": 0.0}),
    Case("mscale_all_dim-half", rope={"mscale": 0.5, "mscale_all_dim": 0.5}),
    Case("mscale-differs", rope={"mscale": 0.707, "mscale_all_dim": 1.0}),
    Case("no-mscale_all_dim", rope={"mscale_all_dim": None}),
    Case("rope-default", rope={"rope_type": "default", "type": "default", "factor": None}),
    Case("no-mscale", rope={"mscale": None}),
    Case("attention_factor", rope={"attention_factor": 0.8}),
    Case("no-betas", rope={"beta_fast": None, "beta_slow": None}),
    Case("wrapped-old", wrapped="old"),
    Case("wrapped-new-tied", wrapped="new", tied=True),
    Case("fp8-tensor", fp8="tensor", outtype="f32"),
    Case("fp8-block-wrapped", fp8="block", wrapped="new", outtype="bf16"),
    Case("template-in-config", files=JINJA, edits={
        "tokenizer_config.json": {"chat_template": TEMPLATE + "{# in config #}"}}),
    Case("templates-in-config", edits={"tokenizer_config.json": {"chat_template": [
        {"name": "default", "template": TEMPLATE}, {"name": "rag-1", "template": "{{ x }}"}]}}),
    *(Case(f"post-{name}", edits={"tokenizer.json": {"post_processor": post}})
      for name, post in POST.items()),
    Case("post-last-other", edits={"tokenizer.json": {"post_processor": template("A", "[/INST]")}}),
    Case("no-bos-in-config", edits={"tokenizer_config.json": {"bos_token": None}}),
    Case("tokens-as-objects", edits={"tokenizer_config.json": {
        f"{k}_token": {"__type": "AddedToken", "content": v, "special": True}
        for k, v in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))}}),
    Case("add_eos", edits={"tokenizer.json": {"post_processor": None},
                           "tokenizer_config.json": {"add_eos_token": True, "sep_token": "<pad>",
                                                     "add_prefix_space": False}}),
    Case("ids-in-config", edits={"tokenizer_config.json": {
        "bos_token": None, "eos_token": None, "pad_token": None}}),
    Case("eos-list", config={"eos_token_id": [2, 4]}),
    Case("ids-elsewhere", config={"pad_token_id": None}, files={
        "generation_config.json": json.dumps({"pad_token_id": 7})}, edits={
        "tokenizer_config.json": {"pad_token": None}}),
    Case("template-json", files={"chat_template.json": json.dumps({"chat_template": TEMPLATE})}),
    Case("templates-named", files={
        **JINJA, "additional_chat_templates/tool-use.jinja": "{{ tools }}"}),
    Case("tekken-v11", tokenizer="tekken", version="v11", files=JINJA),
    Case("tekken-v3", tokenizer="tekken", version="v3"),
    Case("params-plain", native=True, tokenizer="tekken", files={
        "README.md": CARD, "generation_config.json": json.dumps(GENERATION), **JINJA}),
    Case("params-scaled", native=True, tokenizer="tekken", rope={"apply_scale": True},
         files=JINJA),
    Case("params-fp8", native=True, tokenizer="tekken", fp8="tensor", files=JINJA),
    Case("params-tied-q8_0", native=True, tied=True, tokenizer="tekken", outtype="q8_0",
         version="v7"),
    Case("params-llama", native=True, tokenizer="tekken", version="v3",
         config={"llama_4_scaling": None, "yarn": None}),
    Case("params-llama-yarn", native=True, tokenizer="tekken", config={"llama_4_scaling": None},
         files=JINJA),
]  # fmt: skip


def _pattern(number: int, *shape: int) -> torch.Tensor:
    """Whole 512ths below a tenth, which every stored type holds exactly."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return (((at * 7919 + at // shape[-1] * 31 + number * 977) % 101 - 50).float() / 512).view(
        *shape
    )


def _tensors(tied: bool) -> dict[str, torch.Tensor]:
    q, kv = HEADS * HEAD_DIM, HEADS_KV * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (HIDDEN,),
                "self_attn.q_proj": (q, HIDDEN),
                "self_attn.k_proj": (kv, HIDDEN),
                "self_attn.v_proj": (kv, HIDDEN),
                "self_attn.o_proj": (HIDDEN, q),
                "post_attention_layernorm": (HIDDEN,),
                "mlp.gate_proj": (INNER, HIDDEN),
                "mlp.up_proj": (INNER, HIDDEN),
                "mlp.down_proj": (HIDDEN, INNER),
            }.items()
        }
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    return {name: _pattern(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def _to_fp8(tensors: dict[str, torch.Tensor], kind: str, native: bool) -> None:
    """Replaces the layers' matrices by fp8 values with scales."""
    for i, name in enumerate(list(tensors)):
        weight = tensors[name]
        if weight.ndim != 2 or ".layers." not in "." + name:
            continue
        stem = name.removesuffix("weight")
        tensors[name] = (weight * 512).to(E4M3)
        n, m = (1, 1) if kind == "tensor" else (-(-s // 16) for s in weight.shape)
        scale = (1 + torch.arange(n * m) % 5 + i % 3).float().view(n, m) / 1024
        scale = scale.reshape(()).bfloat16() if kind == "tensor" else scale
        tensors[stem + ("qscale_weight" if native else "weight_scale_inv")] = scale
        tensors[stem + ("qscale_act" if native else "activation_scale")] = torch.tensor(0.25)


def build(case: Case, parent: Path) -> Path:
    """Writes the case's folder into parent."""
    folder = parent / case.name
    folder.mkdir(parents=True)
    tensors = {k: v.to(case.dtype) for k, v in _tensors(case.tied).items()}
    if case.native:
        for name in list(tensors):
            for kind, heads in (("q_proj", HEADS), ("k_proj", HEADS_KV)):
                if kind in name:
                    tensors[name] = pairs_of_halves(tensors[name], heads)
        tensors = {native_name(k): v for k, v in tensors.items()}
    if case.fp8:
        _to_fp8(tensors, case.fp8, case.native)
    if case.wrapped:
        old = case.wrapped == "old"
        tensors = {
            "language_model." + k if old else k.replace("model.", "model.language_model.", 1): v
            for k, v in tensors.items()
        }
        prefix = "" if old else "model."
        tensors[prefix + "vision_tower.patch_conv.weight"] = _pattern(0, 4, 3, 2, 2)
        tensors[prefix + "multi_modal_projector.linear_1.weight"] = _pattern(0, 4, 4)
    stem = "consolidated" if case.native else "model"
    save_file(tensors, folder / f"{stem}.safetensors", {"format": "pt"})
    (_write_params if case.native else _write_config)(case, folder)
    if case.tokenizer == "json":
        tiny_tokenizer(folder, VOCAB)
        (folder / "chat_template.jinja").unlink()
    elif case.tokenizer == "tekken":
        tiny_tekken(folder, VOCAB, case.version)
    for name, text in case.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for name, changes in case.edits.items():
        data = _merged(json.loads((folder / name).read_text()), changes)
        (folder / name).write_text(json.dumps(data))
    return folder


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in parts:
        out |= part
    return {k: v for k, v in out.items() if v is not None}


def _write_config(case: Case, folder: Path) -> None:
    text = {
        "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS_KV, "head_dim": HEAD_DIM,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "vocab_size": VOCAB,
        "tie_word_embeddings": case.tied, "hidden_act": "silu", "attention_dropout": 0.0,
        "initializer_range": 0.02, "use_cache": True, "sliding_window": None,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 7,
        "rope_parameters": _merged(YARN, case.rope), **case.config,
    }  # fmt: skip
    config = text
    if case.wrapped:
        del text["architectures"]
        config = {
            "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
            "text_config": text, "vision_config": {"model_type": "pixtral"},
            "tie_word_embeddings": case.tied,
        }  # fmt: skip
    if case.fp8:
        block = [16, 16] if case.fp8 == "block" else None
        config["quantization_config"] = {
            "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": block,
            "modules_to_not_convert": ["model.vision_tower", "lm_head"],
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def _write_params(case: Case, folder: Path) -> None:
    params = {
        "dim": HIDDEN, "n_layers": LAYERS, "head_dim": HEAD_DIM, "hidden_dim": INNER,
        "n_heads": HEADS, "n_kv_heads": HEADS_KV, "rope_theta": 1000000.0, "norm_eps": 1e-5,
        "vocab_size": VOCAB, "tied_embeddings": case.tied, "max_position_embeddings": 256,
        "llama_4_scaling": {"original_max_position_embeddings": 16, "beta": 0.1},
        "yarn": _merged(PARAMS_YARN, case.rope),
    }  # fmt: skip
    if case.fp8:
        params["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    (folder / "params.json").write_text(json.dumps(_merged(params, case.config)))


def _value(value: Any) -> Any:
    if isinstance(value, (list, str)) and len(value) > (16 if isinstance(value, list) else 300):
        text = json.dumps(value, ensure_ascii=True)
        return {"n": len(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return value


def digest(path: Path) -> dict[str, dict[str, Any]]:
    """Keys with types and values, tensors with types, shapes (ne) and a hash of their bytes."""
    reader = gguf.GGUFReader(path)
    return {
        "keys": {
            key: [" of ".join(t.name for t in f.types), _value(f.contents())]
            for key, f in sorted(reader.fields.items())
            if not key.startswith("GGUF.")
        },
        "tensors": {
            t.name: [
                t.tensor_type.name,
                [int(n) for n in t.shape],
                hashlib.sha256(t.data.tobytes()).hexdigest()[:16],
            ]
            for t in sorted(reader.tensors, key=lambda t: t.name)
        },
    }
