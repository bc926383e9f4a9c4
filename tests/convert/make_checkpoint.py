"""Tiny base models and SRDE checkpoints for tests. Plain functions, seeded, no fixtures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<pad>",
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST]{{ m['content'] }}[/INST]{% elif m['role'] == 'system' %}"
    "[SYSTEM_PROMPT]{{ m['content'] }}[/SYSTEM_PROMPT]{% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def tiny_base(
    folder: Path,
    *,
    hidden: int = 64,
    inner: int = 96,
    layers: int = 3,
    heads: int = 4,
    heads_kv: int = 2,
    head_dim: int = 16,
    vocab: int = 320,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    std: float = 0.1,
    rope: dict[str, Any] | None = None,
    tokenizer: bool = True,
    wrapped: str = "",
    max_shard_size: str = "5GB",
) -> Path:
    """Saves a random Ministral 3 model, as transformers does.

    Args:
        std: standard deviation of the matrices; norms are near 1.
        rope: rope_parameters; the default is YARN.
        wrapped: "" for the text model alone; "old" or "new" for the two ways in which
            Mistral3ForConditionalGeneration names its text model, with vision tensors beside it.
    """
    from transformers import Ministral3Config, Ministral3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = Ministral3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads_kv,
        head_dim=head_dim,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters=dict(YARN if rope is None else rope),
        pad_token_id=7,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Ministral3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.05 * noise)
            else:
                parameter.copy_(std * noise)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        tiny_tokenizer(folder, vocab)
    if wrapped:
        _wrap(folder, wrapped)
    return folder


def _wrap(folder: Path, style: str) -> None:
    text = json.loads((folder / "config.json").read_text())
    outer = {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "pixtral"},
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
    }
    (folder / "config.json").write_text(json.dumps(outer))
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        if style == "old":
            new = "language_model." + name
        else:
            new = name.replace("model.", "model.language_model.", 1)
        renamed[new] = tensor
    prefix = "" if style == "old" else "model."
    renamed[prefix + "vision_tower.patch_conv.weight"] = torch.ones(4, 3, 2, 2)
    renamed[prefix + "vision_tower.ln_pre.weight"] = torch.ones(4)
    renamed[prefix + "multi_modal_projector.linear_1.weight"] = torch.ones(4, 4)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def tiny_tokenizer(folder: Path, vocab: int = 320) -> None:
    """Saves a byte-level BPE tokenizer of `vocab` tokens: special ones, bytes, some pairs."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*SPECIAL, *letters]
    merges = []
    for a in "theanoris":
        for b in "theanoris":
            if len(tokens) < vocab and a + b not in tokens:
                merges.append([a, b])
                tokens.append(a + b)
    special = [
        {
            "id": i,
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, t in enumerate(SPECIAL)
    ]
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": special,
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": TEKKEN},
                            "behavior": "Isolated",
                            "invert": False,
                        },
                        {
                            "type": "ByteLevel",
                            "add_prefix_space": False,
                            "trim_offsets": True,
                            "use_regex": False,
                        },
                    ],
                },
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<s>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [
                        {"SpecialToken": {"id": "<s>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "<s>", "type_id": 1}},
                        {"Sequence": {"id": "B", "type_id": 1}},
                    ],
                    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
                },
                "decoder": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                    "use_regex": True,
                },
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": True,
                    "vocab": {t: i for i, t in enumerate(tokens)},
                    "merges": merges,
                },
            }
        )
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "add_bos_token": True,
                "add_eos_token": False,
                "model_max_length": 256,
            }
        )
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def srde_layers(
    base: Path,
    *,
    layers: Iterable[int] | None = None,
    n_experts: int = 6,
    n_atoms: int = 4,
    density: float = 0.02,
    positions: int | None = None,
    dtype: torch.dtype = torch.float32,
    strength: float = 0.2,
    seed: int = 0,
    mask_logits: bool = False,
    with_base_ffn: bool = False,
    duplicates: bool = True,
) -> dict[str, dict[str, torch.Tensor]]:
    """The srde_layers dict of a checkpoint for a folder made by tiny_base.

    Args:
        layers: augmented layers, all by default. positions: n per layer, instead of density.
        strength: standard deviation of the atoms; the router's is chosen so that experts vary.
        duplicates: with the experts' shared copies of the vocabulary, as published.
    """
    config = json.loads((base / "config.json").read_text())
    config = config.get("text_config", config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    total = 3 * hidden * inner
    n = round(total * density) if positions is None else positions
    result = {}
    for i in range(config["num_hidden_layers"]) if layers is None else layers:
        g = torch.Generator().manual_seed(1000 * seed + i)
        atoms = (strength * torch.randn(n_atoms, n, generator=g)).to(dtype)
        mix = torch.randn(n_experts, n_atoms, generator=g).to(dtype)
        layer = {"vocabulary.atoms": atoms, "vocabulary.expert_atom_weights": mix}
        if mask_logits:
            layer["mask_selector.mask_logits"] = torch.randn(total, generator=g).to(dtype)
        else:
            layer["mask_selector.indices"] = torch.randperm(total, generator=g)[:n].clone()
        for e in range(n_experts):
            layer[f"experts.{e}.importance"] = torch.randn(n, generator=g).to(dtype)
            if duplicates:
                layer[f"experts.{e}.vocabulary.atoms"] = atoms
                layer[f"experts.{e}.vocabulary.expert_atom_weights"] = mix
        layer["router.gate.weight"] = (
            torch.randn(n_experts, hidden, generator=g) / hidden**0.5
        ).to(dtype)
        if with_base_ffn:
            layer.update(_base_ffn(base, i))
        result[str(i)] = layer
    return result


def _base_ffn(base: Path, layer: int) -> dict[str, torch.Tensor]:
    out = {}
    for file in base.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            for m in ("gate", "up", "down"):
                if name.endswith(f"layers.{layer}.mlp.{m}_proj.weight"):
                    out[f"base_ffn.{m}_proj.weight"] = tensor
    return out


def srde_checkpoint(
    path: Path,
    base: Path,
    *,
    top_k: int | None = 2,
    module_prefix: bool = False,
    int_keys: bool = False,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Saves a checkpoint file. options: those of srde_layers. top_k None: no config in it."""
    layers = srde_layers(base, **options)
    if module_prefix:
        layers = {k: {"module." + name: t for name, t in v.items()} for k, v in layers.items()}
    top: dict[str, Any] = {"srde_layers": {int(k) if int_keys else k: v for k, v in layers.items()}}
    if top_k is not None:
        top["config"] = {
            "top_k": top_k,
            "num_experts": options.get("n_experts", 6),
            **(config or {}),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(top, path)
    return path


def torch_values(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    """v_e of all experts [E, n], a plain float32 statement of the maths."""
    atoms = layer["vocabulary.atoms"].float()
    mix = torch.softmax(layer["vocabulary.expert_atom_weights"].float(), dim=-1)
    n_experts = mix.shape[0]
    return torch.stack(
        [
            (mix[e] @ atoms) * torch.sigmoid(layer[f"experts.{e}.importance"].float())
            for e in range(n_experts)
        ]
    )


def torch_positions(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    """Flat positions [n] in the checkpoint's order."""
    if "mask_selector.indices" in layer:
        return layer["mask_selector.indices"]
    logits = layer["mask_selector.mask_logits"].float()
    order = torch.argsort(logits, descending=True, stable=True)
    return order[: layer["vocabulary.atoms"].shape[1]]
