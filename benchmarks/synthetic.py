"""Random models of any width for benchmarks, written at the speed of the disk."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "convert"))
from make_checkpoint import SPECIAL, YARN, tiny_tokenizer

WIDTHS_14B = {
    "hidden": 5120,
    "inner": 16384,
    "heads": 32,
    "heads_kv": 8,
    "head_dim": 128,
    "vocab": 131072,
}
_BLOCK = 1 << 22


def random_bf16(seed: int = 0) -> np.ndarray:
    """uint16 [4 Mi]: weights of a standard deviation of 0.02, the upper halves of float32."""
    values = np.random.default_rng(seed).standard_normal(_BLOCK, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def tensors(
    layers: int, hidden: int, inner: int, heads: int, heads_kv: int, head_dim: int, vocab: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Ministral 3 folder."""
    q, kv = heads * head_dim, heads_kv * head_dim
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def config_folder(folder: Path, layers: int, **widths: int) -> Path:
    """config.json and a tokenizer of full size, without weights."""
    folder.mkdir(parents=True)
    w = widths
    config = {
        "model_type": "ministral3",
        "architectures": ["Ministral3ForCausalLM"],
        "hidden_size": w["hidden"],
        "intermediate_size": w["inner"],
        "num_hidden_layers": layers,
        "num_attention_heads": w["heads"],
        "num_key_value_heads": w["heads_kv"],
        "head_dim": w["head_dim"],
        "vocab_size": w["vocab"],
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": {**YARN, "original_max_position_embeddings": 16384},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(folder, len(SPECIAL) + 256)
    _grow_tokenizer(folder / "tokenizer.json", w["vocab"])
    return folder


def base_folder(folder: Path, layers: int, **widths: int) -> Path:
    """A model folder in BF16 with one safetensors file, and a tokenizer of full size."""
    config_folder(folder, layers, **widths)
    header: dict[str, object] = {}
    end = 0
    for name, shape in tensors(layers, **widths):
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = random_bf16().tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for first in range(0, end, len(block)):
            file.write(block[: end - first])
    return folder


def _grow_tokenizer(path: Path, vocab: int) -> None:
    """Pairs and triples of the alphabet, up to vocab tokens."""
    data = json.loads(path.read_text())
    tokens: dict[str, int] = data["model"]["vocab"]
    letters = [t for t in tokens if t not in SPECIAL]
    merges: list[list[str]] = data["model"]["merges"]
    pairs = [a + b for a, b in itertools.product(letters, letters)]
    for left, right in itertools.chain(
        itertools.product(letters, letters), itertools.product(pairs, letters)
    ):
        if len(tokens) >= vocab:
            break
        if left + right not in tokens:
            tokens[left + right] = len(tokens)
            merges.append([left, right])
    path.write_text(json.dumps(data))


def checkpoint(path: Path, layers: int, hidden: int, inner: int, density: float) -> Path:
    """Experts as the published code saves them: 8 experts of 16 atoms, in float32."""
    import torch

    total = 3 * hidden * inner
    n = round(total * density)
    out = {}
    for i in range(layers):
        rng = np.random.default_rng(i)
        # One position in each stretch, in random order: unique without a permutation of all.
        where = np.arange(n) * (total // n) + rng.integers(0, total // n, n)
        rng.shuffle(where)

        def normal(*shape: int, rng: np.random.Generator = rng) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape, np.float32) * np.float32(0.01))

        layer = {
            "mask_selector.indices": torch.from_numpy(where),
            "vocabulary.atoms": normal(16, n),
            "vocabulary.expert_atom_weights": normal(8, 16),
            "router.gate.weight": normal(8, hidden),
        }
        layer.update({f"experts.{e}.importance": normal(n) for e in range(8)})
        out[str(i)] = layer
    torch.save({"srde_layers": out, "config": {"top_k": 2}}, path)
    return path
