"""save_state and load_state: what follows is the same bit for bit, and what does not fit is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import TinyModel, make_model, random_tokens, text_of
from sardine_gguf import BusyError, ContextOverflow, FormatError, Sardine
from sardine_gguf.convert import convert, write_base

TOKENS = random_tokens(120, seed=31)
HEADER = struct.Struct("<8sIIIIIIQQQQIIII")
FIELDS = (
    "magic",
    "version",
    "kv_type",
    "mode",
    "n_layer",
    "n_embd_kv",
    "n_vocab",
    "model_bytes",
    "model_hash",
    "n_tokens",
    "n_logits",
    "n_weights",
    "n_bias",
    "n_own_weights",
    "n_own_bias",
)


def reference_hash(data: bytes) -> int:
    """The checksum from its definition, a word at a time."""
    mask = (1 << 64) - 1
    h = 0x5A2D1E0000000001
    padded = data + bytes(-len(data) % 8)
    words = [w for (w,) in struct.iter_unpack("<Q", padded)]
    if len(data) % 8 == 0:
        words.append(0)
    for word in [*words, len(data)]:
        h = ((h ^ word) * 0x9E3779B97F4A7C15) & mask
        h = ((h << 31) | (h >> 33)) & mask
        h ^= h >> 29
    return h


def rebuilt(state: bytes, **changes: Any) -> bytes:
    """A state with other header fields and the checksum that belongs to them."""
    fields = dict(zip(FIELDS, HEADER.unpack_from(state), strict=True))
    body = HEADER.pack(*(changes.get(f, fields[f]) for f in FIELDS)) + state[HEADER.size : -8]
    return body + struct.pack("<Q", reference_hash(body))


@pytest.fixture(scope="module")
def saved(wide: TinyModel) -> bytes:
    """40 tokens in f16."""
    with wide.open(kv_type="f16") as m:
        m.eval(TOKENS[:40])
        return m.save_state()


@pytest.mark.parametrize("mode", ["sparse", "gain", "off"])
@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_the_next_eval_is_the_same(
    wide: TinyModel, tmp_path: Path, mode: str, kv_type: str
) -> None:
    """Through bytes and through a file, into a used context, another n_ctx, another process's model."""
    options = {"delta_mode": mode, "kv_type": kv_type}
    with wide.open(**options) as m:
        m.eval(TOKENS[:70])
        m.session.decode(TOKENS[70:71])
        state = m.save_state()
        m.save_state(tmp_path / "s.state")
        logits = m.session.last_logits()
        expected = [m.eval(TOKENS[71:75]), m.eval(TOKENS[75:76]), m.eval(TOKENS[76:])]
    assert (tmp_path / "s.state").read_bytes() == state
    assert [f.name for f in tmp_path.iterdir()] == ["s.state"]
    row = 64 * {"f16": 2, "f32": 4}.get(kv_type, 34 / 32)
    assert len(state) == HEADER.size + 4 * 71 + 4 * 320 + 2 * 3 * 71 * row + 8
    for source in (state, bytearray(state), memoryview(state), tmp_path / "s.state"):
        with wide.open(**options, n_ctx=200) as m:
            m.eval(random_tokens(150, seed=2))
            m.load_state(source)
            assert m.n_tokens == 71
            assert m.session.tokens == TOKENS[:71]
            np.testing.assert_array_equal(m.session.last_logits(), logits)
            found = [m.eval(TOKENS[71:75]), m.eval(TOKENS[75:76]), m.eval(TOKENS[76:])]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_generations_go_on_alike(wide: TinyModel) -> None:
    """With the same seed, and the saving changes nothing."""
    with wide.open(kv_type="f16") as m:
        m.eval(TOKENS)
        state = m.save_state()
        options = {"max_tokens": 20, "temperature": 1.0, "seed": 5}
        first = text_of(m, [*TOKENS, 9, 10], **options)  # type: ignore[arg-type]
        m.load_state(state)
        assert text_of(m, [*TOKENS, 9, 10], **options) == first  # type: ignore[arg-type]


def test_empty_and_truncated_contexts(wide: TinyModel) -> None:
    """No tokens; tokens without logits."""
    with wide.open() as m:
        empty = m.save_state()
        assert len(empty) == HEADER.size + 8
        m.eval(TOKENS)
        m.session.truncate(60)
        cut = m.save_state()
        expected = m.eval(TOKENS[60:90])
        m.load_state(empty)
        assert m.n_tokens == 0
        assert m.session.last_logits().size == 0
        m.load_state(cut)
        np.testing.assert_array_equal(m.eval(TOKENS[60:90]), expected)


def test_the_checksum_is_as_defined(saved: bytes) -> None:
    assert saved[:8] == b"SARDSTAT"
    assert struct.unpack("<Q", saved[-8:])[0] == reference_hash(saved[:-8])
    assert rebuilt(saved) == saved


@pytest.fixture(scope="module")
def target(wide: TinyModel) -> Any:
    """A context of 64 tokens that holds 20; every refusal must leave them."""
    with wide.open(kv_type="f16", n_ctx=64) as m:
        m.eval(TOKENS[:20])
        yield m


def refuse(
    target: Sardine,
    state: bytes,
    error: type[Exception] | tuple[type[Exception], ...],
    match: str,
) -> None:
    """The error, and a context that is as before."""
    before = target.save_state()
    with pytest.raises(error, match=match):
        target.load_state(state)
    assert target.save_state() == before


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"magic": b"SARDSTAU"}, FormatError, "no saved state"),
        ({"version": 2}, FormatError, "version 2.*reads 3"),
        ({"version": 0}, FormatError, "version 0"),
        ({"kv_type": 0}, FormatError, "kv_type is 'f32'.*'f16'"),
        ({"kv_type": 8}, FormatError, "kv_type is 'q8_0'.*'f16'"),
        ({"kv_type": 99}, FormatError, "kv_type is 'number 99'"),
        ({"mode": 1}, FormatError, "delta_mode 'gain'.*'sparse'"),
        ({"mode": 77}, FormatError, "delta_mode 'number 77'"),
        ({"n_layer": 4}, FormatError, "n_layer is 4.*is 3"),
        ({"n_layer": 2**32 - 1}, FormatError, "n_layer"),
        ({"n_embd_kv": 32}, FormatError, "n_embd_kv is 32.*is 64"),
        ({"n_vocab": 321}, FormatError, "n_vocab is 321.*is 320"),
        ({"model_bytes": 1}, FormatError, "file size is 1"),
        ({"model_hash": 5}, FormatError, "hash is 5"),
        ({"n_tokens": 39}, FormatError, "truncated or damaged"),
        ({"n_tokens": 41}, FormatError, "truncated or damaged"),
        ({"n_tokens": 65}, ContextOverflow, "65 tokens, more than n_ctx 64"),
        ({"n_tokens": 2**31}, FormatError, "claims 2147483648 tokens"),
        ({"n_tokens": 2**64 - 1}, FormatError, "claims"),
        ({"n_logits": 0}, FormatError, "truncated or damaged"),
        ({"n_logits": 319}, FormatError, "319 logits"),
        ({"n_logits": 2**64 - 1}, FormatError, "logits"),
        ({"n_weights": 3}, FormatError, "steers 3 experts.*has 4"),
        ({"n_weights": 4}, FormatError, "truncated or damaged"),
        ({"n_bias": 4}, FormatError, "truncated or damaged"),
        ({"n_bias": 2**32 - 1}, FormatError, "steers 4294967295 experts"),
        ({"n_own_weights": 3}, FormatError, "steers 3 experts.*has 4"),
        ({"n_own_weights": 4}, FormatError, "truncated or damaged"),
        ({"n_own_bias": 2**32 - 1}, FormatError, "steers 4294967295 experts"),
    ],
)
def test_wrong_headers(
    target: Sardine, saved: bytes, changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    """Each field, with a checksum that is right."""
    refuse(target, rebuilt(saved, **changes), error, match)


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (HEADER.size, struct.pack("<i", -1), "token id -1"),
        (HEADER.size + 4 * 39, struct.pack("<i", 320), "token id 320"),
        (HEADER.size + 4 * 40, struct.pack("<f", float("nan")), "not finite"),
        (HEADER.size + 4 * (40 + 319), struct.pack("<f", float("inf")), "not finite"),
        (HEADER.size + 4 * 360, struct.pack("<e", float("nan")), "not finite"),
        (-8 - 2, struct.pack("<e", float("-inf")), "not finite"),
    ],
)
def test_impossible_content(
    target: Sardine, saved: bytes, at: int, value: bytes, match: str
) -> None:
    """Tokens outside the vocabulary and numbers that would spread, made up with a right checksum."""
    at %= len(saved)
    refuse(target, rebuilt(saved[:at] + value + saved[at + len(value) :]), FormatError, match)


def test_every_truncation_and_some_additions(target: Sardine, saved: bytes) -> None:
    for n in [*range(0, 400), *range(400, len(saved), 997), len(saved) - 1]:
        refuse(target, saved[:n], FormatError, "bytes|no saved state")
    for extra in (b"\0", b"\0" * 8, saved):
        refuse(target, saved + extra, FormatError, "truncated or damaged")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(target: Sardine, saved: bytes, at: int, bit: int) -> None:
    """Wherever it is."""
    damaged = bytearray(saved)
    damaged[at % len(saved)] ^= 1 << bit
    refuse(target, bytes(damaged), (FormatError, ContextOverflow), "state")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes(wide: TinyModel, data: bytes) -> None:
    with wide.open(n_ctx=32) as m, pytest.raises(FormatError):
        m.load_state(data)


def test_a_state_of_another_model(wide: TinyModel, saved: bytes, workshop: Path) -> None:
    """The same shapes and keys but other weights; the same weights in another file."""
    other = make_model(
        workshop / "heads64-other",
        base={"heads": 2, "heads_kv": 1, "head_dim": 64, "seed": 1},
        srde={"n_experts": 4, "density": 0.05},
    )
    with other.open(kv_type="f16") as m, pytest.raises(FormatError, match="another model"):
        m.load_state(saved)
    copy = workshop / "copy-of-heads64.gguf"
    copy.write_bytes(wide.gguf.read_bytes())
    with Sardine(copy) as m:
        m.load_state(saved)
        assert m.n_tokens == 40


def test_files(wide: TinyModel, saved: bytes, tmp_path: Path) -> None:
    """Errors of the system name the file; a destination is replaced whole or not at all."""
    with wide.open(kv_type="f16") as m:
        m.eval(TOKENS[:40])
        with pytest.raises(FileNotFoundError) as caught:
            m.load_state(tmp_path / "none")
        assert caught.value.filename == str(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            m.load_state(tmp_path)
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(FormatError, match="regular file"):
            m.load_state(tmp_path / "fifo")
        for bad in ("a\0b", Path("a\0b")):
            with pytest.raises(ValueError, match="null"):
                m.load_state(bad)
            with pytest.raises(ValueError, match="null"):
                m.save_state(bad)
        for wrong in (3, None, [1, 2]):
            with pytest.raises(TypeError, match="bytes or a path"):
                m.load_state(wrong)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="none"):
            m.save_state(tmp_path / "none" / "s")
        with pytest.raises(FormatError, match="folder"):
            m.save_state(tmp_path)
        (tmp_path / "s").write_bytes(b"before")
        m.save_state(str(tmp_path / "s"))
        assert (tmp_path / "s").read_bytes() == saved
        assert sorted(f.name for f in tmp_path.iterdir()) == ["fifo", "s"]
        (tmp_path / "t").write_bytes(saved[:-1])
        with pytest.raises(FormatError) as bad_format:
            m.load_state(tmp_path / "t")
        assert (bad_format.value.file, bad_format.value.field) == (str(tmp_path / "t"), "size")
        assert "\n" not in str(bad_format.value)


def test_what_is_never_replaced(wide: TinyModel, tmp_path: Path) -> None:
    """A pipe, a device, the model itself by any name, an empty path; a link's target is written."""
    model = tmp_path / "model.gguf"
    model.write_bytes(wide.gguf.read_bytes())
    before = model.read_bytes()
    (tmp_path / "link.gguf").symlink_to(model)
    os.link(model, tmp_path / "hard.gguf")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "elsewhere" / "state")
    with Sardine(model, n_ctx=64) as m:
        m.eval(TOKENS[:4])
        for name, why in (
            ("model.gguf", "is the input"),
            ("link.gguf", "is the input"),
            ("hard.gguf", "is the input"),
            ("fifo", "not a regular file"),
            ("null", "not a regular file"),
        ):
            with pytest.raises(FormatError, match=why):
                m.save_state(tmp_path / name)
        with pytest.raises(FormatError, match="not a regular file"):
            m.save_state("/dev/null")
        with pytest.raises(ValueError, match="empty"):
            m.save_state("")
        for _ in range(2):  # a link to nothing, then to a file
            m.save_state(tmp_path / "good")
            assert (tmp_path / "elsewhere" / "state").read_bytes() == m.save_state()
    assert (tmp_path / "good").is_symlink()
    assert [f.name for f in (tmp_path / "elsewhere").iterdir()] == ["state"]
    assert model.read_bytes() == before
    assert (tmp_path / "fifo").is_fifo()


def test_a_full_disk(wide: TinyModel) -> None:
    """/dev/full is no regular file; a write that fails leaves no file behind (here through RLIMIT_FSIZE)."""
    import subprocess
    import sys

    program = """
import os, resource, signal, sys
from sardine_gguf import Sardine
m = Sardine(sys.argv[1]); m.eval(list(range(8, 108)))
open(sys.argv[2] + "/s", "wb").write(b"before")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    m.save_state(sys.argv[2] + "/s")
except OSError as e:
    print(e.filename.endswith("/s"), sorted(os.listdir(sys.argv[2])), open(sys.argv[2] + "/s", "rb").read())
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, str(wide.gguf), folder],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.stdout.strip() == "True ['s'] b'before'", done.stderr


def test_an_exception_while_saving(wide: TinyModel) -> None:
    """What the destination raises comes out, and the context can be used."""
    with wide.open() as m:
        m.eval(TOKENS[:40])

        def broken(piece: memoryview) -> None:
            raise LookupError("full")

        with pytest.raises(LookupError, match="full"):
            m.session.save(broken)

        def inside(piece: memoryview) -> None:
            with pytest.raises(BusyError):
                m.eval([1])

        m.session.save(inside)
        assert m.eval([8]).shape == (1, 320)


def test_the_adapter_is_part_of_the_model(small: TinyModel, tmp_path: Path) -> None:
    """A state of a base with an adapter fits neither the base alone nor another adapter."""
    base = tmp_path / "base.gguf"
    write_base(small.base, base, "f32")
    adapters = []
    for kind in ("f32", "q8_0"):
        adapters.append(tmp_path / f"{kind}.gguf")
        convert(base, small.srde, adapters[-1], adapter=True, delta_type=kind)
    with Sardine(base, adapter=adapters[0]) as m:
        m.eval([1, 8, 9, 10])
        with pytest.raises(FormatError, match="is the input"):
            m.save_state(adapters[0])
        state = m.save_state()
        expected = m.eval([9])
        m.load_state(state)
        np.testing.assert_array_equal(m.eval([9]), expected)
    with Sardine(base, adapter=adapters[1]) as m, pytest.raises(FormatError, match="another model"):
        m.load_state(state)
    with Sardine(base) as m, pytest.raises(FormatError):
        m.load_state(state)
