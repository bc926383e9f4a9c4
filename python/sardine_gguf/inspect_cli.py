"""sardine-inspect: what is in a file, for people and for programs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sardine_gguf.errors import FormatError, SardineError
from sardine_gguf.output_file import check_output

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_FORMAT, EXIT_IO, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


class UsageError(Exception):
    """Options that do not fit each other, the file or what is installed."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of sardine-inspect."""
    from sardine_gguf import __version__

    p = argparse.ArgumentParser(
        prog="sardine-inspect",
        description="Say what is in a SaRDinE model, an adapter or a plain base: base, quantization, "
        "experts, positions, bytes.",
        epilog="exit codes: 0 done, 2 wrong use, 3 bad file, 4 reading or writing failed, "
        "130 interrupted",
        allow_abbrev=False,
    )
    p.add_argument("file", metavar="FILE", help="GGUF file")
    p.add_argument("--json", action="store_true", help="the same facts as one JSON object")
    p.add_argument("--check", action="store_true", help="validate every index and value")
    p.add_argument(
        "--plot",
        metavar="OUT.png",
        help="draw positions, values and how alike the experts are (needs matplotlib)",
    )
    p.add_argument("--version", action="version", version=f"sardine-inspect {__version__}")
    return p


def run(args: argparse.Namespace) -> None:
    """Inspects and prints; errors are the caller's."""
    from sardine_gguf.inspect_facts import gather
    from sardine_gguf.inspect_text import render
    from sardine_gguf.packed_file import PackedFile

    if "\0" in args.file:
        raise UsageError("the path contains a null byte")
    plot = Path(args.plot) if args.plot else None
    if plot and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: expected a name that ends in .png")
    if plot:
        check_output(plot, [Path(args.file)])
    file = PackedFile(args.file)
    facts = gather(file)
    if plot and not facts.experts:
        raise UsageError(f"--plot: {facts.file} is a plain base model, without experts to draw")
    result = None
    if args.check:
        from sardine_gguf.inspect_check import check

        result = check(file)
    if plot:
        from sardine_gguf.inspect_check import check_experts
        from sardine_gguf.inspect_plot import draw

        if not result:
            check_experts(file)  # what is drawn must be numbers
        try:
            draw(file, facts, plot)
        except ImportError as error:
            raise UsageError(
                f"--plot needs matplotlib ({error}): pip install 'sardine_gguf[plot]'"
            ) from None
    if args.json:
        out = dataclasses.asdict(facts)
        if result:
            out["check"] = dataclasses.asdict(result)
        print(json.dumps(out, indent=2, allow_nan=False))
        return
    print(render(facts))
    if result:
        print(f"\n  check      {result.summary()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-inspect; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
        sys.stdout.flush()
        return EXIT_OK
    except BrokenPipeError:
        # The reader left; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except UsageError as e:
        return _fail(e, EXIT_USAGE)
    except FormatError as e:
        return _fail(e, EXIT_FORMAT)
    except OSError as e:
        return _fail(f"{e.filename or args.file}: {e.strerror or e}", EXIT_IO)
    except (SardineError, MemoryError) as e:
        return _fail(e, EXIT_ERROR)


def _fail(error: object, code: int) -> int:
    from sardine_gguf.inspect_facts import printable

    print(f"sardine-inspect: error: {printable(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
