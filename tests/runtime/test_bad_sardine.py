"""What docs/format.md says a reader must reject, and the base's keys and tensors: one crafted file each.

An independent check of the same rules (validator.py) must agree on every one of them.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_mutate import Gguf
from models import TinyModel
from sardine_gguf import FormatError, Sardine
from validator import Broken, check_sardine

Change = Callable[[Gguf], None]
GATE, UP, DOWN = (f"blk.0.ffn_{m}_delta." for m in ("gate", "up", "down"))
ROUTER, MEAN = "blk.0.ffn_gate_inp.weight", "blk.0.ffn_delta.mean"


def u32(key: str, value: int) -> Change:
    return lambda g: g.set("sardine." + key, "u32", value)


def retyped(key: str, kind: str, value: object) -> Change:
    return lambda g: g.set("sardine." + key, kind, value)


def array(key: str, kind: str, values: list[object]) -> Change:
    return lambda g: g.set_array("sardine." + key, kind, values)


def poke(name: str, code: str, index: int, value: object) -> Change:
    return lambda g: g.poke(name, code, index, value)


def dropped(name: str) -> Change:
    return lambda g: g.drop_tensor(name)


def shaped(name: str, ne: list[int], n_bytes: int) -> Change:
    def change(g: Gguf) -> None:
        t = g.tensor(name)
        t.ne, t.data = ne, (t.data + bytes(n_bytes))[:n_bytes]

    return change


def count(g: Gguf, prefix: str = GATE) -> int:
    return g.tensor(prefix + "col").ne[0]


def rows(g: Gguf, prefix: str = GATE) -> int:
    return g.tensor(prefix + "row_ptr").ne[0]


def with_pair(g: Gguf) -> int:
    """The first position of a gate row that has two."""
    at = [g.peek(GATE + "row_ptr", "i", i) for i in range(rows(g))]
    return next(a for a, b in itertools.pairwise(at) if b - a >= 2)


def swap_columns(g: Gguf) -> None:
    p = with_pair(g)
    a, b = g.peek(GATE + "col", "H", p), g.peek(GATE + "col", "H", p + 1)
    g.poke(GATE + "col", "H", p, b)
    g.poke(GATE + "col", "H", p + 1, a)


def same_column(g: Gguf) -> None:
    p = with_pair(g)
    g.poke(GATE + "col", "H", p + 1, g.peek(GATE + "col", "H", p))


def last_column(value: int) -> Change:
    return lambda g: g.poke(GATE + "col", "H", count(g) - 1, value)


def first_block_column(g: Gguf) -> None:
    """C itself: inside the matrix, outside of the first block of 20 columns."""
    at = next(i for i in range(1, rows(g)) if g.peek(GATE + "row_ptr", "i", i) > 0)
    g.poke(GATE + "col", "H", g.peek(GATE + "row_ptr", "i", at) - 1, 20)


def decrease(g: Gguf) -> None:
    g.poke(GATE + "row_ptr", "i", 5, g.peek(GATE + "row_ptr", "i", 6) + 1)


def ends(by: int) -> Change:
    return lambda g: g.poke(GATE + "row_ptr", "i", rows(g) - 1, count(g) + by)


def bump_everything(g: Gguf) -> None:
    for i in range(rows(g)):
        g.poke(GATE + "row_ptr", "i", i, g.peek(GATE + "row_ptr", "i", i) + 1)


def values(blocks: int, experts: int) -> Change:
    def change(g: Gguf) -> None:
        n = -(-count(g) // 32) + blocks
        shaped(GATE + "val", [32 * n, experts], 34 * n * experts)(g)

    return change


def as_f32(g: Gguf, bad: float | None = None) -> None:
    n = count(g)
    t = g.tensor(GATE + "val")
    t.type, t.ne = 0, [n, 3]
    numbers = [0.5] * (3 * n)
    if bad is not None:
        numbers[-1] = bad
    t.data = struct.pack(f"<{3 * n}f", *numbers)


def as_f16(g: Gguf, bits: int) -> None:
    n = count(g)
    t = g.tensor(GATE + "val")
    t.type, t.ne = 1, [n, 3]
    t.data = struct.pack(f"<{3 * n}H", *([0x3800] * (3 * n - 1)), bits)


def as_q5_0(g: Gguf) -> None:
    t = g.tensor(GATE + "val")
    t.type, t.data = 6, t.data[: -(-count(g) // 32) * 3 * 22]


def block_scale(bits: int) -> Change:
    return lambda g: g.poke(GATE + "val", "H", 0, bits)


def type_of(name: str, kind: int) -> Change:
    return lambda g: setattr(g.tensor(name), "type", kind)


NAMES = [b"a", b"b", b"c"]
# name: (change, field)
CASES: dict[str, tuple[Change, str]] = {
    "version_missing": (lambda g: g.drop("sardine.version"), "sardine.version"),
    "version_0": (u32("version", 0), "sardine.version"),
    "version_3": (u32("version", 3), "sardine.version"),
    "version_2_without_compensation": (
        lambda g: (u32("version", 2)(g), g.drop("sardine.compensation")),
        "sardine.compensation",
    ),
    "extracted_in_version_1": (
        retyped("compensation", "str", "extracted"),
        "sardine.compensation",
    ),
    "compensation_unknown": (retyped("compensation", "str", "half"), "sardine.compensation"),
    "compensation_number": (u32("compensation", 0), "sardine.compensation"),
    "version_text": (retyped("version", "str", "1"), "sardine.version"),
    "version_u8": (retyped("version", "u8", 1), "sardine.version"),
    "version_f32": (retyped("version", "f32", 1.0), "sardine.version"),
    "version_array": (array("version", "u32", [1]), "sardine.version"),
    "experts_0": (u32("expert_count", 0), "sardine.expert_count"),
    "experts_257": (u32("expert_count", 257), "sardine.expert_count"),
    "experts_max": (u32("expert_count", 2**32 - 1), "sardine.expert_count"),
    "experts_less": (u32("expert_count", 2), "sardine.expert_names"),
    "experts_more": (u32("expert_count", 4), "sardine.expert_names"),
    "experts_less_named": (
        lambda g: (u32("expert_count", 2)(g), array("expert_names", "str", [*NAMES[:2]])(g)),
        ROUTER,
    ),
    "experts_i32": (retyped("expert_count", "i32", 3), "sardine.expert_count"),
    "used_0": (u32("expert_used_count", 0), "sardine.expert_used_count"),
    "used_4": (u32("expert_used_count", 4), "sardine.expert_used_count"),
    "used_missing": (lambda g: g.drop("sardine.expert_used_count"), "sardine.expert_used_count"),
    "used_i32": (retyped("expert_used_count", "i32", 2), "sardine.expert_used_count"),
    "names_2": (array("expert_names", "str", [*NAMES[:2]]), "sardine.expert_names"),
    "names_twice": (array("expert_names", "str", [b"a", b"b", b"a"]), "sardine.expert_names"),
    "names_empty": (array("expert_names", "str", [b"a", b"", b"c"]), "sardine.expert_names"),
    "names_missing": (lambda g: g.drop("sardine.expert_names"), "sardine.expert_names"),
    "names_numbers": (array("expert_names", "u32", [1, 2, 3]), "sardine.expert_names"),
    "names_text": (retyped("expert_names", "str", "a"), "sardine.expert_names"),
    "mode_off": (retyped("delta_mode", "str", "off"), "sardine.delta_mode"),
    "mode_empty": (retyped("delta_mode", "str", ""), "sardine.delta_mode"),
    "mode_missing": (lambda g: g.drop("sardine.delta_mode"), "sardine.delta_mode"),
    "mode_number": (u32("delta_mode", 0), "sardine.delta_mode"),
    "layers_empty": (array("layers", "u32", []), "sardine.layers"),
    "layers_twice": (array("layers", "u32", [0, 0]), "sardine.layers"),
    "layers_falling": (array("layers", "u32", [1, 0]), "sardine.layers"),
    "layers_beyond": (array("layers", "u32", [0, 2]), "sardine.layers"),
    "layers_max": (array("layers", "u32", [0, 2**32 - 1]), "sardine.layers"),
    "layers_i32": (array("layers", "i32", [0, 1]), "sardine.layers"),
    "layers_number": (u32("layers", 0), "sardine.layers"),
    "layers_missing": (lambda g: g.drop("sardine.layers"), "sardine.layers"),
    "layer_unlisted": (array("layers", "u32", [0]), "blk.1.ffn_"),
    "layer_unlisted_router": (array("layers", "u32", [1]), "blk.0.ffn_"),
    "block_0": (u32("block_columns", 0), "sardine.block_columns"),
    "block_65537": (u32("block_columns", 65537), "sardine.block_columns"),
    "block_other": (u32("block_columns", 64), "row_ptr"),
    "block_missing": (lambda g: g.drop("sardine.block_columns"), "sardine.block_columns"),
    "block_u64": (retyped("block_columns", "u64", 20), "sardine.block_columns"),
    "no_router": (dropped(ROUTER), ROUTER),
    "no_mean": (dropped(MEAN), MEAN),
    "no_row_ptr": (dropped(GATE + "row_ptr"), GATE + "row_ptr"),
    "no_col": (dropped(UP + "col"), UP + "col"),
    "no_val": (dropped(DOWN + "val"), DOWN + "val"),
    "no_scale": (dropped(GATE + "scale"), GATE + "scale"),
    "router_experts": (shaped(ROUTER, [32, 2], 256), ROUTER),
    "router_hidden": (shaped(ROUTER, [33, 3], 396), ROUTER),
    "router_transposed": (shaped(ROUTER, [3, 32], 384), ROUTER),
    "router_f16": (lambda g: (type_of(ROUTER, 1)(g), shaped(ROUTER, [32, 3], 192)(g)), ROUTER),
    "router_nan": (poke(ROUTER, "f", 95, math.nan), ROUTER),
    "router_inf": (poke(ROUTER, "f", 0, math.inf), ROUTER),
    "mean_4": (shaped(MEAN, [4], 16), MEAN),
    "mean_nan": (poke(MEAN, "f", 2, math.nan), MEAN),
    "mean_minus_inf": (poke(MEAN, "f", 0, -math.inf), MEAN),
    "row_ptr_starts_at_1": (poke(GATE + "row_ptr", "i", 0, 1), GATE + "row_ptr"),
    "row_ptr_starts_below_0": (poke(GATE + "row_ptr", "i", 0, -1), GATE + "row_ptr"),
    "row_ptr_decreases": (decrease, GATE + "row_ptr"),
    "row_ptr_negative": (poke(GATE + "row_ptr", "i", 7, -(2**31)), GATE + "row_ptr"),
    "row_ptr_huge": (poke(GATE + "row_ptr", "i", 7, 2**31 - 1), GATE + "row_ptr"),
    "row_ptr_ends_early": (ends(-1), GATE + "row_ptr"),
    "row_ptr_ends_late": (ends(1), GATE + "row_ptr"),
    "row_ptr_all_plus_1": (bump_everything, GATE + "row_ptr"),
    "row_ptr_short": (lambda g: shaped(GATE + "row_ptr", [rows(g) - 1], 4 * rows(g) - 4)(g), GATE),
    "row_ptr_u": (type_of(GATE + "row_ptr", 0), GATE + "row_ptr"),
    "col_at_block_width": (first_block_column, GATE + "col"),
    "col_at_last_block_width": (last_column(12), GATE + "col"),
    "col_32768": (last_column(32768), GATE + "col"),
    "col_max": (last_column(65535), GATE + "col"),
    "col_swapped": (swap_columns, GATE + "col"),
    "col_twice": (same_column, GATE + "col"),
    "col_one_less": (lambda g: shaped(GATE + "col", [count(g) - 1], 2 * count(g) - 2)(g), GATE),
    "col_one_more": (lambda g: shaped(GATE + "col", [count(g) + 1], 2 * count(g) + 2)(g), GATE),
    "col_type": (type_of(GATE + "col", 1), GATE + "col"),
    "col_2d": (lambda g: shaped(GATE + "col", [count(g), 2], 4 * count(g))(g), GATE),
    "col_more_than_matrix": (lambda g: shaped(GATE + "col", [32 * 33 + 1], 2 * 1057)(g), GATE),
    "val_blocks_less": (values(-1, 3), GATE + "val"),
    "val_blocks_more": (values(1, 3), GATE + "val"),
    "val_experts_less": (values(0, 2), GATE + "val"),
    "val_experts_more": (values(0, 4), GATE + "val"),
    "val_q5_0": (as_q5_0, GATE + "val"),
    "val_block_scale_nan": (block_scale(0x7E01), GATE + "val"),
    "val_block_scale_inf": (block_scale(0xFC00), GATE + "val"),
    "val_f32_nan": (lambda g: as_f32(g, math.nan), GATE + "val"),
    "val_f32_inf": (lambda g: as_f32(g, -math.inf), GATE + "val"),
    "val_f16_nan": (lambda g: as_f16(g, 0x7C01), GATE + "val"),
    "val_f16_inf": (lambda g: as_f16(g, 0xFC00), GATE + "val"),
    "scale_0": (poke(GATE + "scale", "f", 2, 0.0), GATE + "scale"),
    "scale_negative": (poke(GATE + "scale", "f", 0, -1.0), GATE + "scale"),
    "scale_3": (poke(GATE + "scale", "f", 1, 3.0), GATE + "scale"),
    "scale_nan": (poke(GATE + "scale", "f", 1, math.nan), GATE + "scale"),
    "scale_inf": (poke(GATE + "scale", "f", 1, math.inf), GATE + "scale"),
    "scale_4": (shaped(GATE + "scale", [4], 16), GATE + "scale"),
}
# The same for files with a shared part.
SHARED_CASES: dict[str, tuple[Change, str]] = {
    "missing": (dropped(GATE + "shared"), GATE + "shared"),
    "scale_missing": (dropped(UP + "shared_scale"), UP + "shared_scale"),
    "alone": (
        lambda g: [g.drop_tensor(GATE + p) for p in ("row_ptr", "col", "val", "scale")],
        GATE,
    ),
    "version_1": (u32("version", 1), "sardine.compensation"),
    "unannounced": (retyped("compensation", "str", "residual"), "_delta.shared"),
    "one_block_less": (
        lambda g: shaped(GATE + "shared", [-(-count(g) // 32) * 32 - 32], 34 * (count(g) // 32))(g),
        GATE + "shared",
    ),
    "two_rows": (
        lambda g: shaped(GATE + "shared", [32 * -(-count(g) // 32), 2], 68 * -(-count(g) // 32))(g),
        GATE + "shared",
    ),
    "type_i16": (type_of(GATE + "shared", 25), GATE + "shared"),
    "block_scale_nan": (poke(GATE + "shared", "H", 0, 0x7E01), GATE + "shared"),
    "block_scale_inf": (poke(DOWN + "shared", "H", 0, 0x7C00), DOWN + "shared"),
    "scale_0": (poke(GATE + "shared_scale", "f", 0, 0.0), GATE + "shared_scale"),
    "scale_3": (poke(GATE + "shared_scale", "f", 0, 3.0), GATE + "shared_scale"),
    "scale_nan": (poke(GATE + "shared_scale", "f", 0, math.nan), GATE + "shared_scale"),
    "scale_2": (shaped(GATE + "shared_scale", [2], 8), GATE + "shared_scale"),
}
# Files that keep every rule although they look unusual.
GOOD: dict[str, Change] = {
    "values_f32": as_f32,
    "values_f16": lambda g: as_f16(g, 0x3C00),
    "scale_subnormal": poke(GATE + "scale", "f", 1, 2.0**-149),
    "no_compensation_key": lambda g: g.drop("sardine.compensation"),
    "version_2_without_shared": u32("version", 2),
    "mode_gain": retyped("delta_mode", "str", "gain"),
    "no_gate_at_all": lambda g: [
        g.drop_tensor(GATE + p) for p in ("row_ptr", "col", "val", "scale")
    ],
    "unknown_key": retyped("later", "str", "x"),
}


def write(small: TinyModel, change: Change, path: Path) -> Gguf:
    """Writes the changed file; returns it as read back."""
    g = Gguf.parse(small.gguf.read_bytes())
    change(g)
    data = g.build()
    path.write_bytes(data)
    return Gguf.parse(data)


@pytest.mark.parametrize("name", CASES)
def test_bad_sardine_part(name: str, small: TinyModel, tmp_path: Path) -> None:
    """The runtime refuses it and names the field; so does the independent check."""
    refused(small, *CASES[name], tmp_path)


@pytest.mark.parametrize("name", SHARED_CASES)
def test_bad_shared_part(name: str, small_shared: TinyModel, tmp_path: Path) -> None:
    """The same for the shared part."""
    refused(small_shared, *SHARED_CASES[name], tmp_path)


def refused(model: TinyModel, change: Change, field: str, tmp_path: Path) -> None:
    """Asserts that the runtime refuses the changed file with that field, and the independent check too."""
    g = write(model, change, tmp_path / "bad.gguf")
    with pytest.raises(FormatError) as caught:
        Sardine(tmp_path / "bad.gguf", n_ctx=32)
    assert caught.value.file == str(tmp_path / "bad.gguf")
    assert caught.value.field.startswith(field) or field in caught.value.field
    with pytest.raises(Broken):
        check_sardine(g)


@pytest.mark.parametrize("name", GOOD)
def test_good_sardine_part(name: str, small: TinyModel, tmp_path: Path) -> None:
    """Both accept it, and it runs."""
    g = write(small, GOOD[name], tmp_path / "good.gguf")
    check_sardine(g)
    with Sardine(tmp_path / "good.gguf", n_ctx=32) as m:
        assert m.eval([1, 8, 9]).shape == (3, 270)
