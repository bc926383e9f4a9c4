"""Models in Mistral's own format, made from those of tiny_base. Plain functions, no fixtures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import TEKKEN, tiny_base
from safetensors.torch import load_file, save_file

LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
           "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
           "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
           "[TOOL_CONTENT]", "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]")  # fmt: skip
YARN = {"original_max_position_embeddings": 64, "factor": 4.0, "apply_scale": False,
        "beta": 32.0, "alpha": 1.0}  # fmt: skip
LLAMA_4 = {"original_max_position_embeddings": 64, "beta": 0.1}


def pairs_of_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k from Hugging Face's order, halves of each head, to Mistral's, pairs."""
    n, m = weight.shape
    return weight.view(heads, 2, n // heads // 2, m).transpose(1, 2).reshape(n, m).contiguous()


def native_name(name: str) -> str:
    """Mistral's name of a Hugging Face tensor."""
    bare = name.removeprefix("model.")
    if bare.startswith("layers."):
        _, layer, rest = bare.split(".", 2)
        return f"layers.{layer}.{LAYER[rest.removesuffix('.weight')]}.weight"
    return {"embed_tokens.weight": "tok_embeddings.weight", "norm.weight": "norm.weight",
            "lm_head.weight": "output.weight"}[bare]  # fmt: skip


def tiny_native(
    folder: Path,
    *,
    vision: bool = False,
    tekken: bool = True,
    params: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A model in Mistral's format in folder, and the same for Hugging Face in folder/../hf/NAME.

    params: changes to params.json; a value of None takes a key away. options: of tiny_base.
    """
    twin = tiny_base(folder.parent / "hf" / folder.name, **options)
    config = json.loads((twin / "config.json").read_text())
    out: dict[str, Any] = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "tied_embeddings": config["tie_word_embeddings"],
        "max_position_embeddings": config["max_position_embeddings"],
        "llama_4_scaling": dict(LLAMA_4),
        "q_lora_rank": None,
        "yarn": dict(YARN),
        **(params or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    none = {"q_lora_rank", *(k for k, v in out.items() if v is not None)}
    (folder / "params.json").write_text(json.dumps({k: v for k, v in out.items() if k in none}))
    tensors = {}
    for name, tensor in load_file(twin / "model.safetensors").items():
        for kind, heads in (("q_proj", out["n_heads"]), ("k_proj", out["n_kv_heads"])):
            if kind in name:
                tensor = pairs_of_halves(tensor, heads)
        tensors[native_name(name)] = tensor
    if vision:
        tensors["vision_encoder.patch_conv.weight"] = torch.ones(4, 3, 2, 2)
        tensors["vision_language_adapter.w_in.weight"] = torch.ones(4, 4)
        tensors["patch_merger.merging_layer.weight"] = torch.ones(4, 4)
        tensors["pre_mm_projector_norm.weight"] = torch.ones(4)
    save_file(tensors, folder / "consolidated.safetensors")
    if tekken:
        tiny_tekken(folder, config["vocab_size"])
    return folder


def tiny_tekken(folder: Path, vocab: int = 320, version: str = "v13", n_special: int = 28) -> None:
    """Writes a tekken.json: the special tokens, the bytes, and pairs and triples of letters."""
    words = [bytes([i]) for i in range(256)]
    letters = b"theanoris "
    for length in (2, 3):
        for i in range(10**length):
            word = bytes(letters[i // 10**k % 10] for k in range(length))
            # A triple needs a pair to be made of.
            if word not in words and (length == 2 or word[:2] in words or word[1:] in words):
                words.append(word)
    n = vocab - n_special
    (folder / "tekken.json").write_text(
        json.dumps(
            {
                "config": {
                    "pattern": TEKKEN,
                    "num_vocab_tokens": n + 4,
                    "default_vocab_size": vocab,
                    "default_num_special_tokens": n_special,
                    "version": version,
                },
                # More tokens than are used, as published files have.
                "vocab": [
                    {
                        "rank": i,
                        "token_bytes": base64.b64encode(word).decode(),
                        "token_str": word.decode() if word.isascii() else None,
                    }
                    for i, word in enumerate(words[: n + 4])
                ],
                "special_tokens": [
                    {"rank": i, "token_str": text, "is_control": True}
                    for i, text in enumerate(SPECIAL)
                ],
            }
        )
    )
