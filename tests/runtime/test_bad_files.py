"""What GGUF forbids, one crafted file each: a FormatError that names the file and the field, nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_mutate import KINDS, Entry, Gguf, Tensor, pack_array, pack_scalar, pack_text
from models import TinyModel
from sardine_gguf import FormatError, Sardine

U32, ARR = KINDS.index("u32"), KINDS.index("arr")
Change = Callable[[Gguf], None]


def swapped(g: Gguf) -> None:
    g.version = struct.unpack(">I", struct.pack("<I", 3))[0]


def add(g: Gguf, key: bytes, kind: int = U32, payload: bytes = bytes(4)) -> None:
    g.entries.append(Entry(key, kind, payload))


def long_key(length: int) -> Change:
    def change(g: Gguf) -> None:
        key = g.entries[-1].key
        g.tail = b""
        data = g.build()
        at = data.index(pack_text(key))
        g.raw = data[:at] + struct.pack("<Q", length) + data[at + 8 :]  # type: ignore[attr-defined]

    return change


def rename(name: bytes) -> Change:
    return lambda g: setattr(g.tensors[-1], "name", name)


def last(**changes: object) -> Change:
    def change(g: Gguf) -> None:
        for key, value in changes.items():
            setattr(g.tensors[-1], key, value)

    return change


def append_tensor(**parts: object) -> Change:
    """A tensor behind the others, which no model has: it must be refused before that matters."""

    def change(g: Gguf) -> None:
        values = {"name": b"extra", "ne": [8], "type": 0, "data": bytes(32), **parts}
        g.tensors.append(Tensor(**values))  # type: ignore[arg-type]

    return change


def align(value: int) -> Change:
    return lambda g: g.set("general.alignment", "u32", value)


def header_count(**counts: int) -> Change:
    return lambda g: g.__dict__.update(counts)


def same_names(g: Gguf) -> None:
    g.tensors[1].name = g.tensors[0].name


# name: (change, field or a part of it)
CASES: dict[str, tuple[Change, str]] = {
    "magic": (lambda g: setattr(g, "magic", b"FUGG"), "magic"),
    "version_0": (lambda g: setattr(g, "version", 0), "version"),
    "version_1": (lambda g: setattr(g, "version", 1), "version"),
    "version_2": (lambda g: setattr(g, "version", 2), "version"),
    "version_4": (lambda g: setattr(g, "version", 4), "version"),
    "version_swapped": (swapped, "version"),
    "tensors_2e63": (header_count(n_tensors=2**63), "tensor count"),
    "tensors_2e60": (header_count(n_tensors=2**60), "tensor count"),
    "keys_max": (header_count(n_entries=2**64 - 1), "key count"),
    "keys_2e60": (header_count(n_entries=2**60), "key count"),
    "key_length_max": (long_key(2**64 - 1), "key"),
    "key_length_2e30": (long_key(2**30 + 1), "key"),
    "key_length_2e63": (long_key(2**63), "key"),
    "key_empty": (lambda g: add(g, b""), "key"),
    "key_not_utf8": (lambda g: add(g, b"a\xff"), "key"),
    "key_surrogate": (lambda g: add(g, b"a\xed\xa0\x80"), "key"),
    "key_overlong": (lambda g: add(g, b"a\xc0\xaf"), "key"),
    "key_nul": (lambda g: add(g, b"a\0b"), "key"),
    "key_too_long": (lambda g: add(g, b"k" * 65536), "key"),
    "key_twice": (lambda g: add(g, g.entries[3].key), "general."),
    "kind_13": (lambda g: add(g, b"extra", 13), "extra"),
    "kind_minus_1": (lambda g: add(g, b"extra", 2**32 - 1), "extra"),
    "array_of_arrays": (lambda g: add(g, b"extra", ARR, struct.pack("<IQ", ARR, 0)), "extra"),
    "array_of_kind_13": (lambda g: add(g, b"extra", ARR, struct.pack("<IQ", 13, 0)), "extra"),
    "array_count_max": (
        lambda g: add(g, b"extra", ARR, pack_array("u32", [1], 2**64 - 1)),
        "extra",
    ),
    "array_count_2e62": (lambda g: add(g, b"extra", ARR, pack_array("u32", [], 2**62)), "extra"),
    "array_strings_2e61": (lambda g: add(g, b"extra", ARR, pack_array("str", [], 2**61)), "extra"),
    "bool_2": (lambda g: add(g, b"extra", KINDS.index("bool"), b"\2"), "extra"),
    "bool_array_2": (
        lambda g: add(g, b"extra", ARR, pack_array("bool", [0, 1, 2])),
        "extra",
    ),
    "alignment_0": (align(0), "general.alignment"),
    "alignment_1": (align(1), "general.alignment"),
    "alignment_13": (align(13), "general.alignment"),
    "alignment_16": (align(16), "general.alignment"),
    "alignment_48": (align(48), "general.alignment"),
    "alignment_2e31": (align(2**31), ""),
    "alignment_i32": (lambda g: g.set("general.alignment", "i32", 32), "general.alignment"),
    "alignment_u64": (lambda g: g.set("general.alignment", "u64", 32), "general.alignment"),
    "name_64_bytes": (rename(b"n" * 64), "tensor name"),
    "name_empty": (rename(b""), "tensor name"),
    "name_not_utf8": (rename(b"blk\xc3("), "tensor name"),
    "name_nul": (rename(b"a\0b"), "tensor name"),
    "name_twice": (same_names, "token_embd"),
    "dims_0": (last(n_dims=0, ne=[]), ""),
    "dims_5": (append_tensor(ne=[1, 1, 1, 1, 8]), "extra"),
    "dims_2e32": (last(n_dims=2**32 - 1), ""),
    "dim_minus_1": (append_tensor(ne=[-1]), "extra"),
    "dim_0": (append_tensor(ne=[8, 0]), "extra"),
    "dim_2e62": (append_tensor(ne=[2**62]), "extra"),
    "dim_2e63_product": (append_tensor(ne=[2**32, 2**31]), "extra"),
    "dims_wrap_to_0": (append_tensor(ne=[2**32, 2**32]), "extra"),
    "dims_wrap_to_8": (append_tensor(ne=[2**61 + 1, 8]), "extra"),
    "pad_wrap": (append_tensor(ne=[4, 2**30 - 1, 2**30 + 1]), "extra"),
    "i8_2e46": (append_tensor(ne=[2**46], type=24), "extra"),
    "type_count": (append_tensor(type=1000), "extra"),
    "type_minus_1": (append_tensor(type=-1), "extra"),
    "type_removed_4": (append_tensor(type=4), "extra"),
    "type_removed_5": (append_tensor(type=5), "extra"),
    "type_removed_36": (append_tensor(type=36), "extra"),
    "q4_k_255": (append_tensor(ne=[255], type=12), "extra"),
    "offset_unaligned": (last(offset=1), ""),
    "offset_0_again": (last(offset=0), ""),
    "offset_max": (last(offset=2**64 - 32), ""),
    "offset_gap": (append_tensor(offset=2**20), "extra"),
    "data_short": (append_tensor(data=b""), "extra"),
    "byte_after": (lambda g: setattr(g, "tail", b"\0"), "file"),
    "bytes_after": (lambda g: setattr(g, "tail", bytes(32)), "file"),
    "tensor_unknown": (append_tensor(), "extra"),
    "no_tensors": (lambda g: g.tensors.clear(), "token_embd.weight"),
    "no_keys": (lambda g: g.entries.clear(), "general.architecture"),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path for bad files."""
    return tmp_path_factory.mktemp("bad") / "bad.gguf"


@pytest.mark.parametrize("name", CASES)
def test_bad_structure(name: str, small: TinyModel, scratch: Path) -> None:
    """FormatError with file and field; for both classes that open files."""
    change, field = CASES[name]
    g = Gguf.parse(small.gguf.read_bytes())
    change(g)
    scratch.unlink(missing_ok=True)
    scratch.write_bytes(getattr(g, "raw", None) or g.build())
    with pytest.raises(FormatError) as caught:
        Sardine(scratch, n_ctx=32)
    assert caught.value.file == str(scratch)
    assert field in caught.value.field
    assert caught.value.field
    assert str(scratch) in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_unchanged_file_loads(small: TinyModel, scratch: Path) -> None:
    """Reading and writing changes nothing, so each case above fails for its own reason."""
    data = small.gguf.read_bytes()
    g = Gguf.parse(data)
    assert g.build() == data
    g.set("general.alignment", "u32", 64)
    g.alignment = 64
    add(g, b"sardine.something.new")
    scratch.write_bytes(g.build())
    with Sardine(small.gguf, n_ctx=32) as a, Sardine(scratch, n_ctx=32) as b:
        assert (a.eval([1, 9, 10]) == b.eval([1, 9, 10])).all()


def test_metadata_bomb_allocates_little(scratch: Path) -> None:
    """A count of 2^40 strings in 100 bytes is refused before any memory is taken for it."""
    entry = pack_text("a") + struct.pack("<I", ARR) + pack_array("str", [], 2**40)
    scratch.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(32))
    with pytest.raises(FormatError) as caught:
        Sardine(scratch)
    assert caught.value.field == "a"


@pytest.mark.parametrize("data", [b"", b"G", b"GGUF", b"PK\3\4" + bytes(60), pack_scalar("u64", 0)])
def test_files_that_are_not_gguf(data: bytes, tmp_path: Path) -> None:
    """Empty, short and foreign files."""
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        Sardine(path)
    assert caught.value.file == str(path)
