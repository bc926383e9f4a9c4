"""Train the tiny SaRDinE example from nothing: tokenizer, base, experts.

    python -m examples.train.train                        # everything, into examples/tiny-sardine
    python -m examples.train.train --phases alone joint   # redo the experts on the stored base

A tokenizer already in the output folder is kept; otherwise one is trained.
Phase `base` teaches a Ministral 3 a broad mixture in which many families are rare. The base is
then rounded to bf16, reloaded and frozen. Phase `alone` trains each expert on its own domain with
all tokens sent to it; one step sums the gradients of all experts, since they share the atoms. The
router already learns to name the domain, but is not used yet.
Phase `joint` trains everything but the base together with the router.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, Ministral3ForCausalLM

from .dialogues import CODE, GENERALIST, MATH, MATH_AND_CODE, NUM_EXPERTS, Batch, batches
from .forward import logits_at
from .model import WEIGHTS_FILE, SardineModel, base_config
from .muon import Muon
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, save_tokenizer, train_tokenizer

SEED = 20
THREADS = 2
DEFAULT_OUT = Path(__file__).parent.parent / "tiny-sardine"
PHASES = ("base", "alone", "joint")

DTYPE = torch.bfloat16  # of the products in training; everything else is float32
BASE_STEPS, BASE_TOKENS = 4000, 4096
MUON_LR, ADAM_LR = 0.02, 3e-3
ALONE_STEPS, ALONE_TOKENS = 400, 512  # tokens per expert and step
JOINT_STEPS, JOINT_TOKENS = 1200, 4096
ALONE_LR = {"atoms": 1e-2, "importance": 5e-2, "expert_atom_weights": 1e-2, "router": 1e-2}
JOINT_LR = {"atoms": 5e-3, "importance": 2e-2, "expert_atom_weights": 5e-3, "router": 5e-3}
DECAY_SHARE = 0.4  # of each phase's steps
QUESTION_WEIGHT = 0.1  # of a question's tokens in the base's loss; the answers weigh 1
ROUTER_WEIGHT = 0.1  # of the router's domain loss

SARDINE = {
    "num_experts": NUM_EXPERTS,
    "top_k": 2,
    "target_sparsity": 0.04,
    "num_delta_atoms": 16,
}


def answer_loss(lm: Ministral3ForCausalLM, batch: Batch, question_weight: float = 0.0) -> Tensor:
    """Mean cross-entropy of the answers' tokens, the questions' weighted down or left out."""
    real = batch.targets != -100
    wanted = real if question_weight else batch.answer
    logits = logits_at(lm, batch.ids, wanted, DTYPE)
    losses = F.cross_entropy(logits, batch.targets[wanted], reduction="none")
    weight = torch.where(batch.answer[wanted], 1.0, question_weight)
    return (losses * weight).sum() / weight.sum()


def schedule(
    optimizers: Sequence[torch.optim.Optimizer], step: int, steps: int, warmup: int
) -> None:
    """Linear warm-up, each group's peak, and over the last steps linearly down to 2 % of it."""
    decay = (steps - step) / (DECAY_SHARE * steps)
    factor = min(1.0, max(0.02, decay))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        rise = 1.0 if group.get("no_warmup") else min(1.0, (step + 1) / warmup)
        group["lr"] = group["peak"] * rise * factor


def report(phase: str, step: int, steps: int, started: float, text: str) -> None:
    """One progress line."""
    print(f"{phase} {step}/{steps} {time.monotonic() - started:.0f} s {text}", flush=True)


def train_base(tokenizer: Tokenizer, scale: float) -> Ministral3ForCausalLM:
    """Phase `base`: the generalist under the experts, rounded to bf16 at the end."""
    torch.manual_seed(SEED)
    config = base_config(tokenizer.get_vocab_size(), BOS_ID, EOS_ID, PAD_ID)
    model = Ministral3ForCausalLM(config).train()
    optimizers = base_optimizers(model)
    stream = batches(tokenizer, Random(SEED + 1), GENERALIST, "base", BASE_TOKENS)
    steps = max(1, int(BASE_STEPS * scale))
    started, seen = time.monotonic(), 0.0
    for step in range(steps):
        schedule(optimizers, step, steps, warmup=100)
        loss = answer_loss(model, next(stream), QUESTION_WEIGHT)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += loss.item()
        if (step + 1) % 100 == 0:
            report("base", step + 1, steps, started, f"loss {seen / 100:.4f}")
            seen = 0.0
    return model.bfloat16().float()


def base_optimizers(model: Ministral3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, output and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim > 1]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon([{"params": matrices, "peak": MUON_LR}], weight_decay=0.1)
    adam = torch.optim.AdamW(
        [{"params": others, "peak": ADAM_LR}], betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    return [muon, adam]


def save_base(model: Ministral3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder, weights in bf16."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    model.bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def new_experts(base: Path) -> SardineModel:
    """A SaRDinE model on the stored base with fresh experts.

    Expert e starts with most weight on atoms 2e and 2e + 1, so that domains do not fight for the
    same atoms, and may shift that weight later. Atoms start as small noise.
    """
    lm = Ministral3ForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = SardineModel(lm, sardine_config(lm))
    torch.manual_seed(SEED + 2)
    for ffn in model.ffns.values():
        nn.init.normal_(ffn.atoms, std=1e-3)
        nn.init.normal_(ffn.router, std=0.01)
        nn.init.ones_(ffn.importance)
        for expert in range(NUM_EXPERTS):
            ffn.expert_atom_weights.data[expert, 2 * expert : 2 * expert + 2] = 4.0
    return model


def sardine_config(lm: Ministral3ForCausalLM) -> dict[str, object]:
    """The checkpoint's `config` entry."""
    layers = lm.config.num_hidden_layers
    return {
        **SARDINE,
        "hidden_size": lm.config.hidden_size,
        "intermediate_size": lm.config.intermediate_size,
        "num_layers": layers,
        "srde_layers": list(range(layers)),
    }


def expert_optimizer(model: SardineModel, rates: dict[str, float]) -> torch.optim.Optimizer:
    """AdamW over the experts' parameters, one group per kind."""
    groups = [
        {
            "params": [getattr(ffn, name) for ffn in model.ffns.values()],
            "peak": rate,
            "no_warmup": name == "router",
        }
        for name, rate in rates.items()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def train_alone(model: SardineModel, tokenizer: Tokenizer, steps: int) -> None:
    """Phase `alone`: each expert on its own domain, summed into one step."""
    optimizer = expert_optimizer(model, ALONE_LR)
    streams = [
        batches(tokenizer, Random(SEED + 10 + e), e, "expert", ALONE_TOKENS)
        for e in range(NUM_EXPERTS)
    ]
    started, seen = time.monotonic(), torch.zeros(NUM_EXPERTS)
    for step in range(steps):
        schedule([optimizer], step, steps, warmup=20)
        for expert, stream in enumerate(streams):
            model.force_expert(expert)
            batch = next(stream)
            loss = answer_loss(model.lm, batch)
            (loss + ROUTER_WEIGHT * router_loss(model, batch.owner)).backward()
            seen[expert] += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            text = " ".join(f"{value:.3f}" for value in (seen / 20).tolist())
            report("alone", step + 1, steps, started, f"loss by expert {text}")
            seen.zero_()
    model.force_expert(None)


def routing_targets() -> Tensor:
    """Where the router should send a token, by the expert that owns its turn: [E, E].

    Mostly to the owner, partly to the mixtures. Only `GENERALIST` owns small talk.
    """
    target = 0.85 * torch.eye(NUM_EXPERTS)
    target[:, GENERALIST] += 0.15
    for domain in (MATH, CODE):
        target[domain] = 0.0
        target[domain, [domain, MATH_AND_CODE, GENERALIST]] = torch.tensor([0.8, 0.1, 0.1])
    return target


def router_loss(model: SardineModel, owner: Tensor) -> Tensor:
    """Cross-entropy of every layer's routing against `routing_targets`, owner [B, T]."""
    flat = owner.flatten()
    real = flat >= 0
    target = routing_targets()[flat[real]]
    losses = []
    for ffn in model.ffns.values():
        assert ffn.logits is not None
        losses.append(-(target * ffn.logits[real].log_softmax(-1)).sum(-1).mean())
    return torch.stack(losses).mean()


def train_joint(model: SardineModel, tokenizer: Tokenizer, steps: int) -> None:
    """Phase `joint`: atoms, mixing weights, importances and router under top-2 routing."""
    optimizer = expert_optimizer(model, JOINT_LR)
    stream = batches(tokenizer, Random(SEED + 20), GENERALIST, "expert", JOINT_TOKENS)
    started, seen = time.monotonic(), torch.zeros(2)
    for step in range(steps):
        schedule([optimizer], step, steps, warmup=40)
        batch = next(stream)
        loss, routing = answer_loss(model.lm, batch), router_loss(model, batch.owner)
        (loss + ROUTER_WEIGHT * routing).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += torch.stack((loss, routing)).detach()
        if (step + 1) % 20 == 0:
            text = "loss {:.3f} routing {:.3f}".format(*(seen / 20).tolist())
            report("joint", step + 1, steps, started, text)
            seen.zero_()


def main() -> None:
    """Run the phases asked for, each from the files of the one before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all step counts")
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base, weights = args.out / "base", args.out / WEIGHTS_FILE
    alone = args.out / "alone.pt"

    if "base" in args.phases:
        stored = base / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(stored)) if stored.exists() else train_tokenizer(SEED)
        lm = train_base(tokenizer, args.scale)
        save_base(lm, tokenizer, base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    if "alone" in args.phases:
        model = new_experts(base)
        train_alone(model, tokenizer, max(1, int(ALONE_STEPS * args.scale)))
        model.save(alone)
    if "joint" in args.phases:
        model = SardineModel.load(base, alone)
        train_joint(model, tokenizer, max(1, int(JOINT_STEPS * args.scale)))
        model.save(weights)
        print(f"wrote {weights}; {alone} can be deleted")


if __name__ == "__main__":
    main()
