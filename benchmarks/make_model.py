"""Random GGUF files of the shape of Ministral 3 14B, for measuring speed.

    python benchmarks/make_model.py /tmp/base.gguf --experts 0
    python benchmarks/make_model.py /tmp/experts.gguf --adapter [--density 0.01] [--experts 8] [--top-k 2]
    python benchmarks/make_model.py /tmp/sardine.gguf [--mask heavy] [--outtype q4_k_m] [--layers 40]

A base with llama.cpp's mixture of types, the experts alone as an adapter for it, or both in one file. Every
tensor repeats one pool of quantized normal values, so a file is written about as fast as the disk takes it
(8.2 GB for the base, 1.1 GB for 8 experts at 1 %), with less than 1 GiB of memory. The text such a model
writes means nothing; its speed is that of a real one, as no kernel's work depends on the values.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sardine_gguf.convert import native, schema
from sardine_gguf.convert.adapter import adapter_metadata
from sardine_gguf.convert.base import Base
from sardine_gguf.convert.gguf_file import Metadata, Part, TensorSpec, as_bytes, spec
from sardine_gguf.convert.hf_config import read_config
from sardine_gguf.convert.hf_general import general_metadata
from sardine_gguf.convert.mixture import ModelShape, Unquantized, assign_types
from sardine_gguf.convert.options import Quantization
from sardine_gguf.convert.tokenizer import tokenizer_metadata
from sardine_gguf.convert.writer import write_file
from synthetic import WIDTHS_14B, config_folder
from synthetic_experts import MASKS, RandomExperts, repeat, value_pool

_POOL_ROWS = 1 << 22


def base_tensors(layers: int, w: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes (ne) of a base without tied embeddings."""
    h, q, kv = w["hidden"], w["heads"] * w["head_dim"], w["heads_kv"] * w["head_dim"]
    out: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (h, w["vocab"]))]
    for i in range(layers):
        for name, ne in {
            "attn_norm": (h,),
            "attn_q": (h, q),
            "attn_k": (h, kv),
            "attn_v": (h, kv),
            "attn_output": (q, h),
            "ffn_norm": (h,),
            "ffn_gate": (h, w["inner"]),
            "ffn_up": (h, w["inner"]),
            "ffn_down": (w["inner"], h),
        }.items():
            out.append((f"blk.{i}.{name}.weight", ne))
    return [*out, ("output_norm.weight", (h,)), ("output.weight", (h, w["vocab"]))]


@dataclass(frozen=True)
class RandomTensor:
    """One tensor that repeats a pool of its type."""

    name: str
    ne: tuple[int, ...]
    kind: schema.GgmlType
    pool: NDArray[np.uint8]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensor."""
        return (spec(self.name, self.kind, *self.ne),)

    def produce(self) -> Iterator[tuple[str, Any]]:
        """Yields its bytes."""
        if len(self.ne) == 1:
            yield self.name, as_bytes(np.ones(self.ne, np.float32))
            return
        for piece in repeat(self.pool, self.specs[0].nbytes):
            yield self.name, piece


def random_base(layers: int, out_type: str, widths: dict[str, int]) -> Base:
    """A base whose bytes are made when they are written."""
    with tempfile.TemporaryDirectory() as name:
        folder = config_folder(Path(name) / "Random-14B", layers, **widths)
        config = read_config(folder)
        metadata: Metadata = general_metadata(
            folder, config.arch, out_type, 14_000_000_000, warnings=[]
        )
        metadata.update(config.metadata())
        metadata.update(tokenizer_metadata(folder, config.arch, config.vocab, False, []))
    tensors = base_tensors(layers, widths)
    types = assign_types(
        Quantization(out_type),
        ModelShape(config.arch, layers, widths["heads"], widths["heads_kv"]),
        [Unquantized(n, ne) for n, ne in tensors],
    )
    values = np.random.default_rng(0).standard_normal(_POOL_ROWS, np.float32) * np.float32(0.02)
    pools = {
        t: native.quantize(values.reshape(-1, 4096), t.name, 0).reshape(-1)
        for t in set(types)
        if t is not schema.F32
    }
    pools[schema.F32] = values.view(np.uint8)
    parts: list[Part] = [
        RandomTensor(n, ne, t, pools[t]) for (n, ne), t in zip(tensors, types, strict=True)
    ]
    return Base(
        metadata=metadata,
        parts=parts,
        hidden=widths["hidden"],
        inner=widths["inner"],
        layers=layers,
        alignment=schema.MIN_ALIGNMENT,
        inputs=[],
        out_type=out_type,
    )


def make(
    path: Path,
    *,
    layers: int = 40,
    out_type: str = "q4_k_m",
    n_experts: int = 8,
    top_k: int = 2,
    density: float = 0.01,
    mask: str = "random",
    block: int | None = None,
    kind: str = "q8_0",
    adapter: bool = False,
    widths: dict[str, int] = WIDTHS_14B,
) -> None:
    """Writes a file; n_experts = 0 makes the base alone."""
    base = random_base(layers, out_type, widths)
    block = block or schema.default_block_columns(widths["hidden"], widths["inner"])
    metadata = adapter_metadata(base, path) if adapter else dict(base.metadata)
    experts: list[Part] = []
    if n_experts:
        pool = value_pool(kind)
        experts = [
            RandomExperts(
                i, widths["hidden"], widths["inner"], density, n_experts, mask, block, kind, pool
            )
            for i in range(layers)
        ]
        metadata |= {
            schema.KEY_VERSION: ("u32", schema.VERSION),
            schema.KEY_EXPERT_COUNT: ("u32", n_experts),
            schema.KEY_EXPERT_USED_COUNT: ("u32", top_k),
            schema.KEY_EXPERT_NAMES: ("arr[str]", [f"expert_{e}" for e in range(n_experts)]),
            schema.KEY_DELTA_MODE: ("str", "sparse"),
            schema.KEY_LAYERS: ("arr[u32]", list(range(layers))),
            schema.KEY_BLOCK_COLUMNS: ("u32", block),
            schema.KEY_COMPENSATION: ("str", "none"),
        }
    parts = experts if adapter else [*base.parts, *experts]
    write_file(path, metadata, parts, base.alignment, force=True, progress=None)


def main() -> None:
    """Writes one file."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("path", type=Path)
    p.add_argument("--layers", type=int, default=40)
    p.add_argument("--outtype", default="q4_k_m", choices=schema.OUT_TYPES)
    p.add_argument("--experts", type=int, default=8, help="0: the base alone")
    p.add_argument("--top-k", type=int, default=2)
    p.add_argument("--density", type=float, default=0.01, help="of each FFN's weights (0.01)")
    p.add_argument("--mask", choices=MASKS, default="random", help="heavy: top magnitudes")
    p.add_argument("--delta-type", choices=schema.DELTA_TYPES, default="q8_0")
    p.add_argument("--block-columns", type=int, help="default: the converter's")
    p.add_argument("--adapter", action="store_true", help="the experts alone")
    a = p.parse_args()
    if not 0 <= a.experts <= schema.MAX_EXPERTS or not 1 <= a.top_k <= (a.experts or a.top_k):
        p.error(f"--experts {a.experts} --top-k {a.top_k}: expected 0 to 256, and 1 to the experts")
    if a.adapter and not a.experts:
        p.error("--adapter: an adapter is made of experts; leave out --experts 0")
    if not 0 < a.density <= 0.5:
        p.error(f"--density {a.density}: expected more than 0, at most 0.5")
    started = time.monotonic()
    make(
        a.path,
        layers=a.layers,
        out_type=a.outtype,
        n_experts=a.experts,
        top_k=a.top_k,
        density=a.density,
        mask=a.mask,
        block=a.block_columns,
        kind=a.delta_type,
        adapter=a.adapter,
    )
    seconds = time.monotonic() - started
    print(f"{a.path}: {a.path.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s")


if __name__ == "__main__":
    main()
