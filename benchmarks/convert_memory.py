"""Peak memory and time of convert-sardine on synthetic models of several depths.

    python benchmarks/convert_memory.py [--layers 1 3] [--density 0.01] [--outtype q8_0] [--small]

Writes a model of the 14B widths for each depth (3.3 GB and 0.6 GB for each layer in BF16), converts
it in a process of its own and prints that process's peak resident memory (pages of mapped files
count) and its seconds. The peak must stay under 3 GiB and must not grow with the layers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic import WIDTHS_14B, base_folder, checkpoint

SMALL = {**WIDTHS_14B, "hidden": 1024, "inner": 4096, "heads": 8, "heads_kv": 2, "vocab": 32768}


# Not getrusage: a child's maximum there begins with the pages of the process that forked it.
_CHILD = """
import sys
from pathlib import Path
from sardine_gguf.convert.cli import main
code = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(code)
"""


def measure(arguments: list[str]) -> tuple[float, float]:
    """Peak resident GiB, mapped pages included, and seconds of a conversion."""
    started = time.monotonic()
    command = [sys.executable, "-c", _CHILD, *arguments]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(found.stdout.split()[-1]) / 2**20, time.monotonic() - started


def main() -> None:
    """Prints one row for each depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--outtype", default="q8_0")
    parser.add_argument("--small", action="store_true", help="a fifth of the widths, for a try")
    parser.add_argument(
        "--folder", default=None, help="where the models are written (default /tmp)"
    )
    args, more = parser.parse_known_args()
    widths = SMALL if args.small else WIDTHS_14B
    print("| layers | positions | outtype | file | peak memory | seconds |")
    print("|---|---|---|---|---|---|")
    for layers in args.layers:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            base = base_folder(folder / "base", layers, **widths)
            srde = checkpoint(
                folder / "srde_weights.pt", layers, widths["hidden"], widths["inner"], args.density
            )
            out = folder / "out.gguf"
            peak, seconds = measure(
                ["--base", str(base), "--srde", str(srde), "-o", str(out),
                 "--outtype", args.outtype, *more]
            )  # fmt: skip
            size = out.stat().st_size / 1e9
            print(
                f"| {layers} | {args.density:.1%} | {args.outtype} | {size:.2f} GB "
                f"| {peak:.2f} GiB | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
