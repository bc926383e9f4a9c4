"""The zip container of torch.save, read strictly: stored members, checked places and sums."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sardine_gguf.errors import FormatError

from .file_tensor import Extremes
from .files import regular_size
from .reading import PIECE_BYTES, read_exactly

# Of the largest checkpoint, 256 experts in each of 100 layers, there are half as many. An entry takes
# 46 bytes and its name.
MAX_MEMBERS, MAX_DIRECTORY_BYTES = 1 << 16, 8 << 20
_LOCAL = struct.Struct("<4s5H3L2H")
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_RESAVE = (
    "load it with the PyTorch that wrote it and save it again with torch.save(checkpoint, file)"
)


@dataclass(frozen=True)
class Member:
    """A stored member: its bytes are [offset, offset + size) of the file."""

    offset: int
    size: int
    crc: int


class _Directory(io.BufferedReader):
    """Refuses the one long read of zipfile, of the directory, which decides how many entries it makes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size} bytes, expected at most {MAX_DIRECTORY_BYTES}")
        return super().read(size)


class PtZip:
    """The members of a checkpoint by their name inside the archive, e.g. "data.pkl", "data/0"."""

    def __init__(self, path: Path) -> None:
        """Reads the directory only.

        Raises:
            FormatError: another kind of file, or a malformed or unusual archive.
            OSError: the file cannot be read.
        """
        self.path = path
        self.size = regular_size(path)
        self._checked: set[str] = set()
        # What is known of members, read as floats of a type; see pt_tensor.Storage.
        self.extremes: dict[tuple[str, str], Extremes] = {}
        self._refuse_other_kinds()
        try:
            with _Directory(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile raises several kinds on malformed directories
            raise self.bad(f"not a complete zip archive: {error}") from None
        if not 1 <= len(entries) <= MAX_MEMBERS:
            raise self.bad(f"{len(entries)} members, expected 1 to {MAX_MEMBERS}")
        self.members = self._place(entries)
        if "constants.pkl" in self.members or any(n.startswith("code/") for n in self.members):
            raise self.bad(
                "is a TorchScript archive, expected a checkpoint of tensors; save the "
                "state with torch.save(checkpoint, file)"
            )
        if "data.pkl" not in self.members:
            raise self.bad("has no data.pkl, expected a checkpoint written by torch.save")
        if "byteorder" in self.members:
            order = self.read("byteorder", 16)
            if order != b"little":
                raise self.bad(
                    f"byte order {order[:16]!r}, expected b'little'; {_RESAVE} on a "
                    "little-endian machine",
                    "byteorder",
                )

    def read(self, name: str, limit: int) -> bytes:
        """A small member's bytes, with the checksum verified."""
        member = self.members[name]
        if member.size > limit:
            raise self.bad(
                f"the member {name} has {member.size} bytes, expected at most {limit}", name
            )
        with self.path.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise self.bad(f"the member {name} does not match its checksum", name)
        self._checked.add(name)
        return data

    def check(self, name: str) -> None:
        """Verifies a member's checksum, once."""
        if name in self._checked:
            return
        for _ in self.pieces(name):
            pass

    def pieces(self, name: str) -> Iterator[memoryview]:
        """A member's bytes, PIECE_BYTES at a time; each piece is valid until the next one.

        The checksum is computed on the way, unless it was before.

        Raises:
            FormatError: at the end, if the checksum is wrong.
        """
        member, crc, checked = self.members[name], 0, name in self._checked
        buffer = memoryview(bytearray(min(PIECE_BYTES, member.size)))
        with self.path.open("rb", buffering=0) as file:
            for at in range(0, member.size, PIECE_BYTES):
                piece = buffer[: member.size - at]
                read_exactly(file, piece, member.offset + at, f"the member {name}")
                if not checked:
                    crc = zlib.crc32(piece, crc)
                yield piece
        if not checked and crc != member.crc:
            raise self.bad(f"the member {name} does not match its checksum", name)
        self._checked.add(name)

    def bad(self, message: str, field: str = "") -> FormatError:
        """A FormatError about this file."""
        return FormatError(f"{self.path}: {message}", file=str(self.path), field=field)

    def _refuse_other_kinds(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(512)
        if head[:4] == b"PK\x03\x04":
            return
        if head[:2] == b"\x80\x02" and _LEGACY_MAGIC in head[:32]:
            raise self.bad(f"is in the format of PyTorch before 1.6, which is not read; {_RESAVE}")
        if head[257:262] == b"ustar":
            raise self.bad(f"is a tar archive of PyTorch before 0.2, which is not read; {_RESAVE}")
        if head[:1] == b"\x80":
            raise self.bad(f"is a bare pickle, which is not read; {_RESAVE}")
        raise self.bad("is not a zip archive, expected a checkpoint written by torch.save")

    def _place(self, entries: list[zipfile.ZipInfo]) -> dict[str, Member]:
        members: dict[str, Member] = {}
        spans: list[tuple[int, int, str]] = []
        prefix = entries[0].orig_filename.split("/")[0] + "/"
        with self.path.open("rb") as file:
            for entry in entries:
                name = entry.orig_filename
                parts = name.split("/")
                if (
                    not name.startswith(prefix)
                    or len(parts) < 2
                    or "\\" in name
                    or "\0" in name
                    or any(p in ("", ".", "..") for p in parts)
                ):
                    raise self.bad(f"the member name {name[:200]!r} is not one torch.save writes")
                if (
                    entry.compress_type != zipfile.ZIP_STORED
                    or entry.flag_bits & 0x1
                    or (entry.compress_size != entry.file_size)
                ):
                    raise self.bad(
                        f"the member {name!r} is compressed or encrypted, expected "
                        f"stored; {_RESAVE}",
                        name,
                    )
                short = name[len(prefix) :]
                if short in members:
                    raise self.bad(f"the member {name!r} occurs twice", name)
                start = self._data_start(file, entry)
                spans.append((entry.header_offset, start + entry.file_size, name))
                members[short] = Member(start, entry.file_size, entry.CRC)
        end = 0
        for begin, stop, name in sorted(spans):
            if begin < end or stop > self.size:
                raise self.bad(
                    f"the member {name!r} overlaps another or ends outside of the file", name
                )
            end = stop
        return members

    def _data_start(self, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
        raw = b""
        if 0 <= entry.header_offset < self.size:
            file.seek(entry.header_offset)
            raw = file.read(_LOCAL.size)
        if len(raw) == _LOCAL.size:
            fields = _LOCAL.unpack(raw)
            name = file.read(fields[9])
            # Names without the UTF-8 flag are decoded as cp437 by zipfile.
            names = [entry.orig_filename.encode(code, "replace") for code in ("utf-8", "cp437")]
            if fields[0] == b"PK\x03\x04" and fields[3] == 0 and name in names:
                return int(entry.header_offset + _LOCAL.size + fields[9] + fields[10])
        raise self.bad(
            f"the member {entry.orig_filename!r} has no valid header at byte {entry.header_offset}",
            entry.orig_filename,
        )
