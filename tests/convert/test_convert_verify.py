"""--verify: what was written equals its source, and a damaged byte of any part is found."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import read_sardine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from make_checkpoint import srde_checkpoint
from sardine_gguf.convert import atomic, convert, native, verify, write_base
from sardine_gguf.convert.cli import main
from sardine_gguf.convert.pack import value_scale
from sardine_gguf.convert.verify import VerificationError
from sardine_gguf.convert.verify_error import error_bounds
from sardine_gguf.packed_file import Q8_BLOCK, PackedFile, PackedMatrix


@pytest.mark.parametrize("delta_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("outtype", ["f32", "bf16", "q4_k_m"])
def test_a_sound_file(base, srde, tmp_path, outtype, delta_type):
    out = tmp_path / "o.gguf"
    options = {"outtype": outtype, "delta_type": delta_type, "block_columns": 48}
    report = convert(base, srde, out, **options, compensation="none", verify=True)
    found = report.verification
    assert found.positions == sum(report.positions.values())
    assert found.values == 6 * found.positions
    assert found.base_tensors == len([t for t in report.tensors if "delta" not in t.name]) - 3
    assert found.skipped == []
    assert (found.largest_error == 0) == (delta_type == "f32")
    # The bound is no larger than it has to be: some value comes near it.
    assert found.largest_share == 0 if delta_type == "f32" else 0.95 < found.largest_share <= 1
    convert(base, srde, tmp_path / "p.gguf", **options, compensation="none")
    assert out.read_bytes() == (tmp_path / "p.gguf").read_bytes()
    assert "positions equal" in report.summary()


@pytest.mark.parametrize("method", ["residual", "extracted"])
@pytest.mark.parametrize("outtype", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("delta_type", ["f32", "q8_0"])
def test_compensation(base, srde, tmp_path, method, outtype, delta_type):
    """What the base lost at the positions is part of the source, in the values or beside them."""
    report = convert(
        base, srde, tmp_path / "o.gguf", outtype=outtype, delta_type=delta_type, block_columns=48,
        compensation=method, shared_type="f16" if delta_type == "f32" else "q8_0", verify=True,
    )  # fmt: skip
    found = report.verification
    assert found.skipped == []
    assert found.values == (7 if method == "extracted" else 6) * found.positions
    assert found.largest_share <= 1


def test_gguf_base_and_adapter(base, srde, tmp_path):
    write_base(base, tmp_path / "base.gguf", "q8_0")
    merged = convert(tmp_path / "base.gguf", srde, tmp_path / "m.gguf", verify=True)
    assert merged.verification.base_bytes > 0
    alone = convert(tmp_path / "base.gguf", srde, tmp_path / "a.gguf", adapter=True, verify=True)
    assert alone.verification.base_tensors == 0
    assert alone.verification.positions == merged.verification.positions


@pytest.mark.parametrize(
    "options", [{"positions": 0}, {"positions": 1}, {"layers": [1]}, {"density": 1.0}]
)
def test_unusual_checkpoints(base, tmp_path, options):
    file = srde_checkpoint(tmp_path / "s.pt", base, **options)
    report = convert(base, file, tmp_path / "o.gguf", outtype="f16", verify=True)
    assert report.verification.positions == sum(report.positions.values())


def test_the_reader_agrees_with_the_plain_one(base, srde, tmp_path):
    """packed_file against read_sardine, element by element."""
    for delta_type in ("f32", "f16", "q8_0"):
        out = tmp_path / f"{delta_type}.gguf"
        convert(base, srde, out, outtype="f16", delta_type=delta_type, block_columns=20)
        file = PackedFile(out)
        size = file.hidden * file.inner
        for index, layer in read_sardine.layers(out).items():
            packed = [
                (i, m) for i in range(3) if (m := file.matrix(index, ("gate", "up", "down")[i]))
            ]
            found = np.concatenate([m.positions() + i * size for i, m in packed])
            np.testing.assert_array_equal(found, layer.positions)
            for e, values in enumerate(layer.values):
                mine = np.concatenate([m.values(e) for _, m in packed])
                pieces = np.concatenate(
                    [m.values(e, s, s + 64) for _, m in packed for s in range(0, m.n, 64)]
                )
                np.testing.assert_array_equal(mine, values)
                np.testing.assert_array_equal(pieces, values)
            assert all(m.defect() is None for _, m in packed)


def test_the_reader_agrees_about_the_shared_part(base, srde, tmp_path):
    for kind in ("f32", "f16", "q8_0"):
        out = tmp_path / f"{kind}.gguf"
        convert(base, srde, out, outtype="q8_0", compensation="extracted", shared_type=kind)
        file = PackedFile(out)
        for index, layer in read_sardine.layers(out).items():
            packed = [m for name in ("gate", "up", "down") if (m := file.matrix(index, name))]
            shared = np.concatenate([m.shared.values(0) for m in packed])
            np.testing.assert_array_equal(shared, layer.shared)
            assert all(m.defect() is None for m in packed)


PARTS = {
    "row_ptr": "blk.1.ffn_up_delta.row_ptr",
    "col": "blk.0.ffn_gate_delta.col",
    "val": "blk.2.ffn_down_delta.val",
    "scale": "blk.1.ffn_gate_delta.scale",
    "router": "blk.0.ffn_gate_inp.weight",
    "mean": "blk.2.ffn_delta.mean",
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "ffn": "blk.2.ffn_down.weight",
}


def damage(monkeypatch, change):
    """Has a file changed behind the converter's back, before it is verified."""
    real = atomic.AtomicFile.commit

    def commit(self, verify, force):
        data = bytearray(self.temp.read_bytes())
        change(data, {t.name: t for t in native.GgufFile(str(self.temp)).tensors})
        self.temp.write_bytes(data)
        real(self, verify, force)

    monkeypatch.setattr(atomic.AtomicFile, "commit", commit)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("where", "delta_type"), [(0.0, "f32"), (0.37, "f16"), (0.61, "q8_0"), (1.0, "q8_0")]
)
def test_a_damaged_byte(base, srde, tmp_path, monkeypatch, part, where, delta_type):
    """Found in every kind of part, at both ends and between; nothing is left behind."""

    def change(data, tensors):
        t = tensors[PARTS[part]]
        # The highest byte of a number, and in the values one whose change is above their rounding.
        at = t.offset + round(where * (t.nbytes - 1))
        if part == "val" and delta_type != "q8_0":
            width = 4 if delta_type == "f32" else 2
            at = t.offset + (at - t.offset) // width * width + width - 1
        data[at] ^= 0x10

    damage(monkeypatch, change)
    out = tmp_path / "o.gguf"
    with pytest.raises(VerificationError) as caught:
        convert(base, srde, out, outtype="f16", delta_type=delta_type, verify=True)
    assert PARTS[part].rsplit(".", 1)[0] in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("residual", "val"), ("residual", "scale"), ("extracted", "shared"),
        ("extracted", "shared_scale"), ("extracted", "val"),
    ],
)  # fmt: skip
def test_a_damaged_byte_of_compensated_values(base, srde, tmp_path, monkeypatch, method, part):
    name = f"blk.1.ffn_down_delta.{part}"

    def change(data, tensors):
        t = tensors[name]
        data[t.offset + t.nbytes // 2 | 1] ^= 0x10

    damage(monkeypatch, change)
    with pytest.raises(VerificationError, match=r"blk\.1\.ffn_down_delta"):
        convert(base, srde, tmp_path / "o.gguf", outtype="q8_0", compensation=method, verify=True)


def test_every_byte_of_small_parts(base, srde, tmp_path, monkeypatch):
    """Any flipped bit of a router, a mean, an index or a scale, and of the padding."""
    convert(base, srde, tmp_path / "o.gguf", outtype="f16")
    tensors = read_sardine.tensors(tmp_path / "o.gguf")
    rng = np.random.default_rng(0)
    wanted = {n: t for n, t in tensors.items() if "_delta" in n or "gate_inp" in n}
    for name in rng.choice([n for n in sorted(wanted) if not n.endswith(".val")], 15):
        bit = int(rng.integers(8 * tensors[name].n_bytes))

        def change(data, found, name=name, bit=bit):
            data[found[name].offset + bit // 8] ^= 1 << bit % 8

        with monkeypatch.context() as patch:
            damage(patch, change)
            with pytest.raises(VerificationError):
                convert(base, srde, tmp_path / "d.gguf", outtype="f16", verify=True)

    def change_padding(data, found):
        t = found["blk.0.ffn_delta.mean"]
        data[t.offset + t.nbytes] = 1

    damage(monkeypatch, change_padding)
    with pytest.raises(VerificationError, match="not zero"):
        convert(base, srde, tmp_path / "d.gguf", outtype="f16", verify=True)


def test_command_line(base, srde, tmp_path, monkeypatch, capsys):
    args = ["--base", str(base), "--srde", str(srde), "-o", str(tmp_path / "o.gguf"), "--verify"]
    assert main(args) == 0
    assert "verified" in capsys.readouterr().out
    assert main([*args, "--dry-run", "--force"]) == 2
    before = (tmp_path / "o.gguf").read_bytes()
    capsys.readouterr()
    damage(
        monkeypatch,
        lambda data, tensors: data.__setitem__(tensors["blk.0.attn_q.weight"].offset, 7),
    )
    assert main([*args, "--force"]) == 4
    err = capsys.readouterr().err
    assert "blk.0.attn_q.weight" in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "o.gguf").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf"]


FLOATS = st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(1, 70), elements=FLOATS), st.sampled_from(["f16", "q8_0"]))
def test_the_bound_holds_for_any_values(values, kind):
    """Stored as the converter stores them, no value is further away than error_bounds says."""
    values = values[None]
    scale = value_scale(values, kind)
    if kind == "f16":
        stored = (values / scale[:, None]).astype("<f2")
    else:
        rows = np.zeros((1, -(-values.shape[1] // 32) * 32), np.float32)
        np.divide(values, scale[:, None], out=rows[:, : values.shape[1]])
        stored = native.quantize(rows, "q8_0", 1).view(Q8_BLOCK)
    n = values.shape[1]
    packed = PackedMatrix(
        1, n, n, np.array([0, n], np.int32), np.arange(n, dtype=np.uint16), stored, kind, scale
    )
    source = values[0].astype(np.float64)
    assert (np.abs(packed.values(0) - source) <= error_bounds(packed, 0, 0, source)).all()
    if kind == "q8_0":
        theirs = gguf.dequantize(stored.view(np.uint8), gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_allclose(
            packed.values(0), theirs.reshape(-1)[:n].astype(np.float64) * scale[0], rtol=1e-6
        )


def test_pieces_give_the_same(base, srde, tmp_path, monkeypatch):
    """Values are compared some at a time: with any number of them the result is the same."""
    options = {"outtype": "q8_0", "verify": True, "force": True}
    whole = convert(base, srde, tmp_path / "o.gguf", **options).verification
    monkeypatch.setattr(verify, "CHUNK", 64)
    assert convert(base, srde, tmp_path / "o.gguf", **options).verification == whole
