"""The reference model: a Ministral 3 whose FFNs carry routed sparse deltas.

Plain PyTorch on top of transformers, written to be read. One layer, for a token with FFN input x:

    v_e = (softmax(expert_atom_weights[e]) @ atoms) * sigmoid(importance[e])   values of expert e
    l   = clamp(router @ x, -50, 50);  S = top-k of l;  w = softmax(l[S])      routing

    sparse: every FFN matrix W becomes W + sum over S of w_e * Delta_e, Delta_e holding v_e at the
            layer's sparse positions
    gain:   FFN(x) * (1 + sum over S of w_e * mean(v_e))
    off:    FFN(x)

Shapes use B tokens, H hidden, I intermediate, E experts, A atoms, n positions, k selected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Ministral3Config, Ministral3ForCausalLM

Mode = Literal["sparse", "gain", "off"]
MATRICES = ("gate_proj", "up_proj", "down_proj")
ROUTER_CLAMP = 50.0
WEIGHTS_FILE = "srde_weights.pt"


def largest_positions(ffn: nn.Module, sparsity: float) -> Tensor:
    """Flat positions [n] of the largest |w| in gate | up | down, largest first."""
    flat = torch.cat([getattr(ffn, name).weight.detach().flatten() for name in MATRICES])
    order = torch.sort(flat.abs(), descending=True, stable=True).indices
    return order[: int(sparsity * flat.numel())].clone()


class SardineFFN(nn.Module):
    """A frozen FFN with E sparse experts and a per-token top-k router.

    `forced` sends every token to one expert with weight 1 (used while experts are trained alone);
    `random_routing` keeps the router's weights but gives them to k experts drawn at random.
    """

    def __init__(self, ffn: nn.Module, indices: Tensor, num_experts: int, atoms: int, top_k: int):
        """Wrap `ffn`; indices [n] are flat positions in gate | up | down."""
        super().__init__()
        self.ffn = ffn
        n, hidden = indices.numel(), ffn.gate_proj.in_features
        self.register_buffer("indices", indices, persistent=False)  # [n]
        self.atoms = nn.Parameter(torch.zeros(atoms, n))  # [A, n]
        self.expert_atom_weights = nn.Parameter(torch.zeros(num_experts, atoms))  # [E, A]
        self.importance = nn.Parameter(torch.zeros(num_experts, n))  # [E, n]
        self.router = nn.Parameter(torch.zeros(num_experts, hidden))  # [E, H]
        self.top_k = top_k
        self.mode: Mode = "sparse"
        self.forced: int | None = None
        self.random_routing: torch.Generator | None = None
        self.logits: Tensor | None = None  # [B, E], of the last forward pass
        self.chosen: Tensor | None = None  # [B, k]
        self.weights: Tensor | None = None  # [B, k]
        self._parts = [getattr(ffn, name).weight.numel() for name in MATRICES]
        self._kept: dict[int, list[Tensor]] = {}

    def values(self, expert: int) -> Tensor:
        """v_e, [n]."""
        mixed = torch.softmax(self.expert_atom_weights[expert].float(), -1) @ self.atoms.float()
        return mixed * torch.sigmoid(self.importance[expert].float())

    def deltas(self, expert: int) -> list[Tensor]:
        """Delta_e as dense gate [I, H], up [I, H] and down [H, I]; kept while not training."""
        if torch.is_grad_enabled():
            self._kept.clear()
        elif expert in self._kept:
            return self._kept[expert]
        flat = torch.zeros(sum(self._parts), dtype=torch.float32)
        flat = flat.index_put((self.indices,), self.values(expert))
        parts = [
            part.view_as(getattr(self.ffn, name).weight)
            for part, name in zip(flat.split(self._parts), MATRICES, strict=True)
        ]
        if not torch.is_grad_enabled():
            self._kept[expert] = parts
        return parts

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and weights, [B, k] each, for x [B, H]."""
        self.logits = F.linear(x.float(), self.router).clamp(-ROUTER_CLAMP, ROUTER_CLAMP)
        top, chosen = self.logits.topk(self.top_k, dim=-1)
        weights = torch.softmax(top, dim=-1)
        if self.random_routing is not None:
            order = torch.rand(self.logits.shape, generator=self.random_routing)
            chosen = order.argsort(-1)[:, : self.top_k]
        self.chosen, self.weights = chosen, weights
        return chosen, weights

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> [..., H]; products are in x's type, routing and values in float32."""
        if self.mode == "off":
            return self.ffn(x.float()).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        if self.forced is not None:
            self.route(flat.detach())  # unused here, but the router can learn from its logits
            out = self._one_expert(flat, self.forced)
        else:
            chosen, weights = self.route(flat)
            run = self._sparse if self.mode == "sparse" else self._gain
            out = run(flat, chosen, weights)
        return out.view_as(x)

    def _one_expert(self, x: Tensor, expert: int) -> Tensor:
        gate, up, down = (
            (getattr(self.ffn, name).weight + delta).to(x.dtype)
            for name, delta in zip(MATRICES, self.deltas(expert), strict=True)
        )
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def _gain(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        means = torch.stack([self.values(e).mean() for e in range(self.importance.shape[0])])
        return self.ffn(x) * (1 + (weights * means[chosen]).sum(-1, keepdim=True))

    def _sparse(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The base FFN plus, expert by expert, the deltas of the tokens that chose it."""
        rows, gates, ups, downs = [], [], [], []
        for expert in range(self.importance.shape[0]):
            row, slot = torch.where(chosen == expert)  # [b], tokens of this expert
            if row.numel() == 0:
                continue
            d_gate, d_up, d_down = (delta.to(x.dtype) for delta in self.deltas(expert))
            weight, x_row = weights[row, slot, None].to(x.dtype), x[row]
            rows.append(row)
            gates.append(weight * F.linear(x_row, d_gate))
            ups.append(weight * F.linear(x_row, d_up))
            downs.append((row, weight, d_down))
        index = torch.cat(rows)
        w_gate, w_up, w_down = (getattr(self.ffn, name).weight.to(x.dtype) for name in MATRICES)
        gate = F.linear(x, w_gate).index_add(0, index, torch.cat(gates))  # [B, I]
        up = F.linear(x, w_up).index_add(0, index, torch.cat(ups))
        h = F.silu(gate) * up
        added = [weight * F.linear(h[row], d_down) for row, weight, d_down in downs]
        return F.linear(h, w_down).index_add(0, index, torch.cat(added))


class SardineModel:
    """A Ministral3ForCausalLM whose `mlp` modules are `SardineFFN`s."""

    def __init__(self, base: Ministral3ForCausalLM, config: dict[str, Any]):
        """Wrap every layer of `config["srde_layers"]`; the positions come from the base."""
        self.lm = base.float().eval()
        self.lm.requires_grad_(False)
        self.config = config
        self.ffns: dict[int, SardineFFN] = {}
        for index in config["srde_layers"]:
            layer = self.lm.model.layers[index]
            layer.mlp = SardineFFN(
                layer.mlp,
                largest_positions(layer.mlp, config["target_sparsity"]),
                config["num_experts"],
                config["num_delta_atoms"],
                config["top_k"],
            )
            self.ffns[index] = layer.mlp

    @classmethod
    def load(cls, base: Path, weights: Path) -> SardineModel:
        """Load a base folder and its `srde_weights.pt`."""
        lm = Ministral3ForCausalLM.from_pretrained(base, dtype=torch.float32)
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        model = cls(lm, stored["config"])
        for index, state in stored["srde_layers"].items():
            ffn = model.ffns[int(index)]
            ffn.indices.copy_(state["mask_selector.indices"])
            ffn.atoms.data.copy_(state["vocabulary.atoms"])
            ffn.expert_atom_weights.data.copy_(state["vocabulary.expert_atom_weights"])
            ffn.router.data.copy_(state["router.gate.weight"])
            for expert in range(model.config["num_experts"]):
                ffn.importance.data[expert].copy_(state[f"experts.{expert}.importance"])
        return model

    def save(self, path: Path) -> None:
        """Write the published layout: bf16 atoms and importances, f32 mixing and router."""
        layers = {}
        for index, ffn in self.ffns.items():
            atoms = ffn.atoms.detach().bfloat16()
            mixing = ffn.expert_atom_weights.detach().clone()
            state = {
                "mask_selector.indices": ffn.indices,
                "vocabulary.atoms": atoms,
                "vocabulary.expert_atom_weights": mixing,
                "router.gate.weight": ffn.router.detach().clone(),
            }
            for expert in range(ffn.importance.shape[0]):
                importance = ffn.importance.detach()[expert].bfloat16()
                state[f"experts.{expert}.importance"] = importance
                # The same storage again, as in the published files; torch.save writes it once.
                state[f"experts.{expert}.vocabulary.atoms"] = atoms
                state[f"experts.{expert}.vocabulary.expert_atom_weights"] = mixing
            layers[str(index)] = state
        torch.save({"srde_layers": layers, "config": self.config}, path)

    def set_mode(self, mode: Mode, *, random_seed: int | None = None) -> None:
        """Choose how the deltas act; with `random_seed`, experts are drawn at random."""
        for ffn in self.ffns.values():
            ffn.mode, ffn.forced = mode, None
            ffn.random_routing = None
            if random_seed is not None:
                ffn.random_routing = torch.Generator().manual_seed(random_seed)

    def force_expert(self, expert: int | None) -> None:
        """Send every token to one expert (None: back to the router)."""
        for ffn in self.ffns.values():
            ffn.forced = expert


def base_config(vocab_size: int, bos_id: int, eos_id: int, pad_id: int) -> Ministral3Config:
    """A small Ministral 3: YaRN over a short trained context, attention temperature, untied."""
    return Ministral3Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        rope_parameters={
            "type": "yarn",
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    )
