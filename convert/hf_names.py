"""How a folder's tensors are called, in Hugging Face's format and in Mistral's own. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """Names of the stored tensors by their GGUF names.

    Attributes:
        stem: of the safetensors files. prefixes: one of them begins the name of a text tensor.
        parts: beginnings of the names of the other parts, which are left out.
        head: names of the output matrix, whole. layer: the names within layers.N.
        permuted: rows of q and k are in Hugging Face's order, rotary halves after each other.
    """

    stem: str
    prefixes: tuple[str, ...]
    parts: tuple[str, ...]
    embedding: str
    norm: str
    head: tuple[str, ...]
    layer: dict[str, str]
    permuted: bool


HF = Naming(
    stem="model",
    prefixes=("language_model.model.", "model.language_model.", "model."),
    parts=("vision_tower.", "multi_modal_projector.", "vision_encoder.", "patch_merger."),
    embedding="embed_tokens.weight",
    norm="norm.weight",
    head=("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"),
    layer={
        "attn_norm.weight": "input_layernorm.weight",
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_k.weight": "self_attn.k_proj.weight",
        "attn_v.weight": "self_attn.v_proj.weight",
        "attn_output.weight": "self_attn.o_proj.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    },
    permuted=True,
)

NATIVE = Naming(
    stem="consolidated",
    prefixes=("",),
    parts=(
        "vision_encoder.",
        "vision_language_adapter.",
        "patch_merger.",
        "pre_mm_projector_norm.",
    ),
    embedding="tok_embeddings.weight",
    norm="norm.weight",
    head=("output.weight",),
    layer={
        "attn_norm.weight": "attention_norm.weight",
        "attn_q.weight": "attention.wq.weight",
        "attn_k.weight": "attention.wk.weight",
        "attn_v.weight": "attention.wv.weight",
        "attn_output.weight": "attention.wo.weight",
        "ffn_norm.weight": "ffn_norm.weight",
        "ffn_gate.weight": "feed_forward.w1.weight",
        "ffn_up.weight": "feed_forward.w3.weight",
        "ffn_down.weight": "feed_forward.w2.weight",
    },
    permuted=False,
)
