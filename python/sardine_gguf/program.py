"""What the command line programs share: exit codes, and errors as one line on standard error."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from sardine_gguf.errors import FormatError, SardineError
from sardine_gguf.terminal import clean

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_FORMAT, EXIT_IO, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 wrong use, 3 bad file, 4 file not readable, 130 interrupted"
)


def error_text(error: BaseException) -> str:
    """An error in one line; of the system's, the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        return f"{name}: {error.strerror}" if name else error.strerror
    return str(error) or type(error).__name__


def _open_closed_streams() -> None:
    """Standard streams that were closed (>&-) lead nowhere, and no other file takes their number."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


def _leave_stdout() -> None:
    # Nobody takes it: keep the interpreter from flushing into it at its end.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Errors of writing. Those of files name the file; of a standard stream nobody does.
_WRITING = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


def run_program(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parses the arguments, runs, and turns exceptions into a line and an exit code."""
    _open_closed_streams()
    args = parser.parse_args(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")

    def fail(error: object, code: int) -> int:
        print(f"{parser.prog}: error: {clean(str(error))}", file=sys.stderr)
        return code

    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader left
        _leave_stdout()
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except FormatError as e:
        return fail(e, EXIT_FORMAT)
    except OSError as e:
        if not e.filename and e.errno in _WRITING:
            e.filename = "standard output"
            _leave_stdout()
        return fail(error_text(e), EXIT_IO)
    except (SardineError, MemoryError) as e:
        return fail(e, EXIT_ERROR)
    except ValueError as e:
        return fail(e, EXIT_USAGE)


# llama.cpp's verbosity: 0 is what programs print anyway, 1 errors, 2 warnings, 3 information, 4 and 5 all.
_LEVELS = (
    logging.CRITICAL,
    logging.ERROR,
    logging.WARNING,
    logging.INFO,
    logging.DEBUG,
    logging.DEBUG,
)


@contextlib.contextmanager
def library_log(
    verbosity: int | None, file: str | None, *, everything: bool = False
) -> Iterator[None]:
    """While it is open, what libllama and ggml say is shown, on standard error or in a file.

    Args:
        verbosity: 0 to 5 as in llama.cpp; None is 1, and 3 in a file.
        everything: the same as verbosity 5.

    Raises:
        OSError: the file cannot be written.
    """
    if verbosity is None:
        verbosity = 3 if file else 1
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("sardine_gguf")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[5 if everything else verbosity])
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()
