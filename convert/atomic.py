"""A file that appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from sardine_gguf.errors import FormatError


def check_destination(path: Path, inputs: Iterable[Path], force: bool) -> None:
    """Refuses a destination before any work is done.

    Raises:
        FormatError: it is a folder or device, one of the inputs, or exists and force is not set.
        OSError: its folder does not exist or cannot be examined.
    """
    if not path.name or path.is_dir():
        raise FormatError(f"{path}: the output is a folder, expected a file name", file=str(path))
    folder = path.parent
    if not stat.S_ISDIR(folder.stat().st_mode):
        raise NotADirectoryError(f"{folder}: the output's folder is not a folder")
    if not os.path.lexists(path):
        return
    if path.exists():
        info = path.stat()
        for item in inputs:
            if os.path.samestat(info, item.stat()):
                raise FormatError(
                    f"{path}: the output is the input {item}; name another file", file=str(path)
                )
        if not stat.S_ISREG(info.st_mode):
            raise FormatError(
                f"{path}: the output exists and is not a regular file", file=str(path)
            )
    if not force:
        raise FormatError(
            f"{path}: the output exists already; use --force to replace it", file=str(path)
        )


def sweep(path: Path) -> None:
    """Removes temporary files that killed runs to the same destination left behind.

    Every live run holds a lock on its own; the lock of a dead one is gone, whatever killed it.
    """
    pattern = re.compile(re.escape(_stem(path)) + r"[0-9a-f]{8}\.tmp")
    for entry in path.parent.iterdir():
        if not pattern.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(entry, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                entry.unlink()
            finally:
                os.close(fd)


def _stem(path: Path) -> str:
    # Room for the suffix within the usual limit of 255 bytes.
    return "." + os.fsdecode(os.fsencode(path.name)[:200]) + "."


class AtomicFile:
    """Writes to a temporary file beside path; commit() puts it there, anything else removes it.

    Not thread-safe. Every write error surfaces as OSError at the latest in commit().
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temp: Path | None = None
        self._fd = -1

    def __enter__(self) -> AtomicFile:
        try:
            self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def _open(self) -> None:
        while True:
            self.temp = self.path.parent / f"{_stem(self.path)}{secrets.token_hex(4)}.tmp"
            try:
                self._fd = os.open(self.temp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                self.temp = None
                continue
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a sweeper was faster and is removing it
                os.close(self._fd)
                self._fd = -1
                continue
            except OSError:  # a file system without locks: nothing will sweep it either
                pass
            return

    def need(self, size: int) -> None:
        """Raises OSError (ENOSPC) now rather than after minutes if size bytes cannot fit."""
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise OSError(
                errno.ENOSPC, f"{size} bytes are needed and {free} are free", str(self.path)
            )

    def write(self, data: Any) -> None:
        """Writes all of a bytes-like object."""
        view = memoryview(data)
        try:
            while len(view):
                view = view[os.write(self._fd, view) :]
        except OSError as e:
            e.filename = str(self.path)  # a failed write does not know its file
            raise

    def commit(self, verify: Callable[[Path], None], force: bool) -> None:
        """Syncs, verifies the temporary file, moves it to the destination, syncs the folder."""
        assert self.temp is not None
        os.fsync(self._fd)
        verify(self.temp)
        if force:
            self.temp.replace(self.path)
        else:
            self._take_a_free_name(self.temp)
        self.temp = None
        fd, self._fd = self._fd, -1
        os.close(fd)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _take_a_free_name(self, temp: Path) -> None:
        """Moves the file to the destination if nothing is there, in one step where links can be made."""
        try:
            os.link(temp, self.path, follow_symlinks=False)
        except FileExistsError:
            raise self._appeared() from None
        except OSError:  # a file system without hard links
            if os.path.lexists(self.path):
                raise self._appeared() from None
            temp.replace(self.path)
        else:
            temp.unlink()

    def _appeared(self) -> FormatError:
        return FormatError(
            f"{self.path}: the output was created by another program meanwhile",
            file=str(self.path),
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        temp, self.temp = self.temp, None
        fd, self._fd = self._fd, -1
        # The name goes first: after the lock is gone a sweeper could meet another's file.
        if temp is not None:
            with contextlib.suppress(OSError):
                temp.unlink()
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
