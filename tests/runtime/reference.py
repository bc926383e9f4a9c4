"""A SaRDinE model in plain PyTorch on transformers' Ministral3: what the runtime is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Ministral3ForCausalLM


class SardineFfn(nn.Module):
    """One augmented FFN. Every token's matrices are written out; nothing is clever.

    base: gate [I, H], up [I, H], down [H, I]; positions [n] flat in that order; values [E, n].
    """

    def __init__(self, mlp: nn.Module, layer: dict[str, Tensor], top_k: int, mode: str) -> None:
        super().__init__()
        self.base = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
        self.router = layer["router.gate.weight"].float()
        self.top_k, self.mode = top_k, mode
        mix = torch.softmax(layer["vocabulary.expert_atom_weights"].float(), dim=-1)
        atoms = layer["vocabulary.atoms"].float()
        n_experts = mix.shape[0]
        self.values = torch.stack(
            [
                (mix[e] @ atoms) * torch.sigmoid(layer[f"experts.{e}.importance"].float())
                for e in range(n_experts)
            ]
        )
        if "mask_selector.indices" in layer:
            self.positions = layer["mask_selector.indices"]
        else:
            order = torch.argsort(
                layer["mask_selector.mask_logits"].float(), descending=True, stable=True
            )
            self.positions = order[: atoms.shape[1]]
        self.last_ids = torch.empty(0)
        self.last_weights = torch.empty(0)
        self.last_logits = torch.empty(0)

    def deltas(self, values: Tensor) -> list[Tensor]:
        """The three matrices' changes for one value vector [n]."""
        sizes = [w.numel() for w in self.base]
        flat = torch.zeros(sum(sizes))
        flat[self.positions] = values
        parts = torch.split(flat, sizes)
        return [part.view_as(w) for part, w in zip(parts, self.base, strict=True)]

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Clamped logits [batch, tokens, E] -> ids and weights, each [batch, tokens, top_k]."""
        top, ids = torch.topk(logits, self.top_k, dim=-1)
        return ids, torch.softmax(top, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, H] -> [batch, tokens, H]"""
        gate, up, down = self.base
        if self.mode == "off":
            return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
        self.last_logits = F.linear(x, self.router)[0]
        ids, weights = self.choose(torch.clamp(F.linear(x, self.router), -50, 50))
        self.last_ids, self.last_weights = ids[0], weights[0]
        if self.mode == "gain":
            y = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
            return y * (1 + (weights * self.values.mean(dim=1)[ids]).sum(-1, keepdim=True))
        out = torch.empty_like(x)
        for b in range(x.shape[0]):
            for t in range(x.shape[1]):
                values = (weights[b, t, :, None] * self.values[ids[b, t]]).sum(0)
                dg, du, dd = self.deltas(values)
                xt = x[b, t]
                out[b, t] = (down + dd) @ (F.silu((gate + dg) @ xt) * ((up + du) @ xt))
        return out


class Reference:
    """Loads a folder and a checkpoint; `layers` holds the augmented FFNs by layer number."""

    def __init__(self, base: Path, checkpoint: Path | None, top_k: int = 2, mode: str = "sparse"):
        self.model = Ministral3ForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.eval()
        # transformers' attention fails without them, though its config allows that.
        rope = self.model.config.rope_parameters
        rope.setdefault("llama_4_scaling_beta", 0.0)
        rope.setdefault("original_max_position_embeddings", 1)
        self.layers: dict[int, SardineFfn] = {}
        if checkpoint is None:
            return
        saved = torch.load(checkpoint, weights_only=True)["srde_layers"]
        for key, tensors in saved.items():
            clean = {name.removeprefix("module."): t for name, t in tensors.items()}
            block = self.model.model.layers[int(key)]
            block.mlp = self.layers[int(key)] = SardineFfn(block.mlp, clean, top_k, mode)

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> Tensor:
        """[n_tokens, n_vocab]"""
        return self.model(torch.tensor([tokens]), use_cache=False).logits[0]

    def routing(self) -> tuple[Tensor, Tensor]:
        """(ids, weights) of the last call, each [n_layers_with_experts, n_tokens, top_k]."""
        order = sorted(self.layers)
        return (
            torch.stack([self.layers[i].last_ids for i in order]),
            torch.stack([self.layers[i].last_weights for i in order]),
        )
