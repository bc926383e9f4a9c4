"""convert-sardine: arguments, progress and exit codes."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from sardine_gguf.errors import FormatError

from . import schema
from .conversion import OptionError, convert, write_base
from .options import QuantOptions
from .progress import bar, lines
from .report import ConversionReport
from .writer import Progress

EXIT_USAGE, EXIT_FORMAT, EXIT_IO, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 3, 4, 130, 143


class _Terminated(BaseException):
    """SIGTERM or SIGHUP, raised so that the temporary file is removed."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert-sardine",
        allow_abbrev=False,
        description="Write a base model and SRDE experts to one GGUF file.",
        epilog="exit codes: 0 done, 2 wrong use, 3 an input is not what it must be, "
        "4 reading or writing failed, 130 interrupted",
    )
    parser.add_argument(
        "--base",
        required=True,
        metavar="DIR_OR_GGUF",
        help="model folder (Hugging Face's or Mistral's format), or a GGUF file whose tensors are "
        "copied; of a split one any part",
    )
    parser.add_argument(
        "--srde",
        metavar="FILE_OR_DIR",
        help="checkpoint (.pt or .safetensors), or the folder that it is in",
    )
    parser.add_argument(
        "--base-only",
        action="store_true",
        help="write the base alone, an ordinary GGUF file; without --srde",
    )
    parser.add_argument("-o", "--outfile", required=True, metavar="OUT.gguf")
    parser.add_argument(
        "--outtype",
        type=str.lower,
        choices=schema.OUT_TYPES,
        metavar="TYPE",
        help=f"type of the base: {', '.join(schema.OUT_TYPES)} (default q4_k_m; "
        "only with a folder)",
    )
    parser.add_argument(
        "--delta-type",
        type=str.lower,
        choices=schema.DELTA_TYPES,
        metavar="TYPE",
        help=f"type of the experts' values: {', '.join(schema.DELTA_TYPES)} "
        "(default q8_0; f32 with --outtype f32)",
    )
    parser.add_argument(
        "--delta-mode",
        choices=schema.DELTA_MODES,
        help="mode that a runtime starts in (default sparse)",
    )
    parser.add_argument(
        "--expert-names",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="one name for each expert",
    )
    parser.add_argument(
        "--block-columns",
        type=int,
        metavar="N",
        help="width of a column block (default 8192)",
    )
    repair = parser.add_mutually_exclusive_group()
    repair.add_argument(
        "--compensation",
        choices=schema.COMPENSATIONS,
        metavar="METHOD",
        help="how the deltas make up for the base's quantization error: "
        f"{', '.join(schema.COMPENSATIONS)} (default {schema.DEFAULT_COMPENSATION}; only with a "
        "folder and a quantized outtype)",
    )
    repair.add_argument(
        "--no-compensate",
        dest="compensation",
        action="store_const",
        const="none",
        help="the same as --compensation none",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the experts alone, for any GGUF file of the same base "
        "(sardine-cli -m base.gguf --adapter OUT.gguf)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the written file back and compare all of it with the inputs before it takes its place",
    )
    _add_quantization(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be written; reads headers and positions only",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each CPU")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    noise.add_argument(
        "--verbose", action="store_true", help="list the tensors; show where an error came from"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    return parser


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization of a folder, as in llama-quantize")
    group.add_argument(
        "--imatrix", metavar="FILE", help="importance matrix of llama-imatrix, of either format"
    )
    group.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="type of the matrices in whose names the regular expression NAME is found, "
        "e.g. attn_v=q8_0; can be repeated, the first that is found decides",
    )
    group.add_argument("--pure", action="store_true", help="no mixture: one type for all matrices")
    group.add_argument(
        "--token-embedding-type", metavar="TYPE", help="type of the embedding, token_embd.weight"
    )
    group.add_argument(
        "--output-tensor-type", metavar="TYPE", help="type of the output matrix, output.weight"
    )
    group.add_argument(
        "--leave-output-tensor", action="store_true", help="keep output.weight as it is stored"
    )


def _check_use(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where options exclude each other."""
    if not args.base_only:
        if args.srde is None:
            parser.error("--srde is required (or --base-only, to convert the base alone)")
        return
    of_experts = ("srde", "adapter", "compensation", "delta_type", "delta_mode", "expert_names")
    for name in (*of_experts, "block_columns"):
        if getattr(args, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')}: not with --base-only, which has no experts")


def _version() -> str:
    try:
        return importlib.metadata.version("sardine_gguf")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _progress(args: argparse.Namespace) -> tuple[Progress | None, Callable[[], None]]:
    if args.quiet or args.dry_run:
        return None, lambda: None
    return bar() if sys.stderr.isatty() else (lines(), lambda: None)


def _convert(args: argparse.Namespace, progress: Progress | None) -> ConversionReport:
    quant: QuantOptions = {
        "imatrix": args.imatrix,
        "tensor_types": args.tensor_type,
        "pure": args.pure,
        "token_embedding_type": args.token_embedding_type,
        "output_tensor_type": args.output_tensor_type,
        "leave_output_tensor": args.leave_output_tensor,
    }
    if args.base_only:
        return write_base(
            args.base,
            args.outfile,
            args.outtype,
            verify=args.verify,
            force=args.force,
            dry_run=args.dry_run,
            n_threads=args.threads,
            progress=progress,
            **quant,
        )
    return convert(
        args.base,
        args.srde,
        args.outfile,
        outtype=args.outtype,
        delta_type=args.delta_type,
        delta_mode=args.delta_mode or "sparse",
        expert_names=args.expert_names,
        block_columns=schema.DEFAULT_BLOCK_COLUMNS
        if args.block_columns is None
        else args.block_columns,
        adapter=args.adapter,
        verify=args.verify,
        compensation=args.compensation,
        force=args.force,
        dry_run=args.dry_run,
        n_threads=args.threads,
        progress=progress,
        **quant,
    )


def _run(args: argparse.Namespace) -> None:
    progress, close = _progress(args)
    try:
        report = _convert(args, progress)
    finally:
        close()
    for warning in report.warnings:
        print(f"warning: {_line(warning)}", file=sys.stderr)
    if args.quiet:
        return
    for note in report.notes:
        print(f"note: {_line(note)}", file=sys.stderr)
    if args.dry_run or args.verbose:
        print(report.plan())
    print(report.summary())


def _line(text: str) -> str:
    """Text as one line without control characters, whatever a file put into it."""
    return "".join(c if c.isprintable() else " " for c in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_use(parser, args)
    # What is ignored already (SIGHUP under nohup) stays so.
    ours = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in ours:
        signal.signal(number, _terminate)
    try:
        _run(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the file is there; only nobody reads the summary
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FormatError, OptionError, OSError, MemoryError) as error:
        if args.verbose:
            traceback.print_exc()
        text = str(error) or type(error).__name__
        print(f"convert-sardine: error: {_line(text)}", file=sys.stderr)
        if isinstance(error, FormatError):
            return EXIT_FORMAT
        return EXIT_USAGE if isinstance(error, OptionError) else EXIT_IO
    except KeyboardInterrupt:
        print("convert-sardine: error: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except _Terminated:
        print("convert-sardine: error: terminated", file=sys.stderr)
        return EXIT_TERMINATED
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
