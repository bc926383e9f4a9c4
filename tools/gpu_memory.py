"""What a GPU of a size would hold of a model, by the rule of n_gpu_layers "auto". Needs no GPU.

    python tools/gpu_memory.py model.gguf [--adapter experts.gguf] [-c 4096] [-ctk q8_0]

Of each size 0.6 GiB are taken as used by the driver and the screen; what is left is called free here.
"""

from __future__ import annotations

import argparse
import sys

from sardine_gguf import _native
from sardine_gguf.context import encoded_path

SIZES = (4, 6, 8, 10, 11, 12, 16, 24, 32)
GIB = 1 << 30
OTHERS = 0.6  # GiB


def main() -> int:
    """Prints a Markdown table."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--adapter")
    p.add_argument("-c", "--ctx-size", type=int, default=4096)
    p.add_argument("-ctk", "--cache-type", choices=("f16", "q8_0"), default="f16")
    a = p.parse_args()
    adapter = encoded_path(a.adapter) if a.adapter else None
    m = _native.Model(encoded_path(a.model), adapter=adapter)
    of = m.hparams["n_layer"] + 1
    print("| GPU memory | layers on the GPU | of them taken |\n|---|---|---|")
    for size in SIZES:
        free = (size - OTHERS) * GIB
        n, taken = m.gpu_plan(free, n_ctx=a.ctx_size, kv_type=a.cache_type)
        layers = "all" if n == of else f"{n} of {of}" if n else "none"
        print(f"| {size} GiB | {layers} | {taken / GIB:.1f} GiB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
