"""convert-sardine: progress and exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from sardine_gguf.errors import FormatError

from .arguments import check_use, make_parser
from .conversion import OptionError, convert, write_base
from .options import QuantOptions
from .outfile import outfile
from .progress import bar, lines
from .report import ConversionReport, one_line
from .writer import Progress

EXIT_USAGE, EXIT_FORMAT, EXIT_IO, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 3, 4, 130, 143


class _Terminated(BaseException):
    """SIGTERM or SIGHUP, raised so that the temporary file is removed."""


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
            outfile(args),
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
        outfile(args),
        outtype=args.outtype,
        delta_type=args.delta_type,
        delta_mode=args.delta_mode or "sparse",
        expert_names=args.expert_names,
        block_columns=args.block_columns,
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
        print(f"warning: {one_line(warning)}", file=sys.stderr)
    if args.quiet:
        return
    for note in report.notes:
        print(f"note: {one_line(note)}", file=sys.stderr)
    if args.dry_run or args.verbose:
        print(report.plan())
    print(report.summary())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_use(parser, args)
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
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{os.fsdecode(error.filename)}: {error.strerror}"
        print(f"convert-sardine: error: {one_line(text)}", file=sys.stderr)
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
