"""The forward pass used in training: transformers' Ministral 3 again, nearly twice as fast.

It takes the weights from the transformers model and multiplies in bfloat16, keeps the residual
stream in float32, and computes logits only where they are wanted. In float32 it equals
transformers (tests/test_example.py). Positions stay below YaRN's original context, where the
attention temperature is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Ministral3ForCausalLM


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """x [.., in] -> [.., out] in x's type."""
    return F.linear(x, layer.weight.to(x.dtype))


def rms_norm(x: Tensor, layer: nn.Module, eps: float) -> Tensor:
    """RMS norm over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), layer.weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, heads, T, head_dim]; cos and sin are [1, 1, T, head_dim]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def attention(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """Causal grouped-query attention, x [B, T, H] -> [B, T, H]; mask [T, T] is added to scores.

    Written out: at these lengths (under 200 tokens) it beats the fused CPU kernel in training.
    """
    count, length = x.shape[:2]
    shape = (count, length, -1, layer.head_dim)
    q = rotate(linear(x, layer.q_proj).view(shape).transpose(1, 2), cos, sin)
    k = rotate(linear(x, layer.k_proj).view(shape).transpose(1, 2), cos, sin)
    v = linear(x, layer.v_proj).view(shape).transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    # The query heads of one key head side by side: [B * kv_heads, groups * T, head_dim].
    q = q.reshape(count * k.shape[1], groups * length, layer.head_dim)
    k, v = k.reshape(-1, length, layer.head_dim), v.reshape(-1, length, layer.head_dim)
    scores = torch.bmm(q, k.transpose(1, 2)) * layer.scaling
    scores = scores.view(-1, groups, length, length) + mask
    out = torch.bmm(torch.softmax(scores, -1).view(-1, groups * length, length), v)
    out = out.view(count, -1, length, layer.head_dim).transpose(1, 2)
    return linear(out.reshape(count, length, -1), layer.o_proj)


def hidden_states(lm: Ministral3ForCausalLM, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The final norm's output in float32, [B, T, H], for ids [B, T]."""
    length, eps = ids.shape[1], lm.config.rms_norm_eps
    if length > lm.config.rope_parameters["original_max_position_embeddings"]:
        raise ValueError(f"{length} tokens: the attention temperature is not implemented here")
    h = F.embedding(ids, lm.model.embed_tokens.weight)
    cos, sin = lm.model.rotary_emb(h, torch.arange(length)[None])
    cos, sin = cos[:, None].to(dtype), sin[:, None].to(dtype)
    mask = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
    for layer in lm.model.layers:
        x = rms_norm(h, layer.input_layernorm, eps).to(dtype)
        h = h + attention(layer.self_attn, x, cos, sin, mask)
        x = rms_norm(h, layer.post_attention_layernorm, eps).to(dtype)
        mlp = layer.mlp
        if hasattr(mlp, "gate_proj"):
            hidden = F.silu(linear(x, mlp.gate_proj)) * linear(x, mlp.up_proj)
            h = h + linear(hidden, mlp.down_proj)
        else:
            h = h + mlp(x)
    return rms_norm(h, lm.model.norm, eps)


def logits_at(lm: Ministral3ForCausalLM, ids: Tensor, wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 logits [wanted.sum(), vocab] at the positions where `wanted` [B, T] is true."""
    return linear(hidden_states(lm, ids, dtype)[wanted].to(dtype), lm.lm_head).float()
