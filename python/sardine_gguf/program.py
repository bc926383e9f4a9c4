"""What the command line programs share: exit codes, and errors as one line on standard error."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from sardine_gguf.errors import FormatError, SardineError
from sardine_gguf.terminal import clean

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_FORMAT, EXIT_IO, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 wrong use, 3 bad file, 4 file not readable, 130 interrupted"
)


def run_program(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parses the arguments, runs, and turns exceptions into a line and an exit code."""
    args = parser.parse_args(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")

    def fail(error: object, code: int) -> int:
        print(f"{parser.prog}: error: {clean(str(error))}", file=sys.stderr)
        return code

    try:
        return run(args)
    except BrokenPipeError:
        # The reader left; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except FormatError as e:
        return fail(e, EXIT_FORMAT)
    except OSError as e:
        return fail(
            f"{e.filename or getattr(args, 'model', '')}: {e.strerror or e}".lstrip(": "), EXIT_IO
        )
    except (SardineError, MemoryError) as e:
        return fail(e, EXIT_ERROR)
    except ValueError as e:
        return fail(e, EXIT_USAGE)


def log_to_stderr() -> None:
    """Shows what libllama and ggml say."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("sardine_gguf")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
