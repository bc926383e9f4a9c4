"""encode_rows, the hot path of a conversion, against NumPy and ggml's quantizer row by row."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sardine_gguf._native import encode_rows, largest_value, quantize, requires_importance
from sardine_gguf.convert.arrays import DTYPES, to_float32
from sardine_gguf.convert.schema import WEIGHT_TYPES

# The tables of the types of 1 and 2 bits take ggml seconds to make.
FREE_TYPES = [t for t in WEIGHT_TYPES if not t.startswith(("iq1", "iq2"))]
STORED = ("f64", "f32", "f16", "bf16")


def stored_rows(values, kind):
    """Values as a checkpoint stores them."""
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(DTYPES[kind].numpy)


def test_the_table_of_types_is_ggmls():
    for name, kind in WEIGHT_TYPES.items():
        number = gguf.GGMLQuantizationType[name.upper()]
        assert (kind.id, kind.block, kind.block_bytes) == (number, *gguf.GGML_QUANT_SIZES[number])
    assert [t for t in WEIGHT_TYPES if requires_importance(t)] == ["iq2_xs", "iq2_xxs", "iq1_s"]
    for name in FREE_TYPES:
        rows = np.ones((2, 256), np.float32)
        found = encode_rows(rows, "f32", name, n_cols=256)
        assert found.shape == (2, WEIGHT_TYPES[name].row_bytes(256)), name
        if WEIGHT_TYPES[name].block > 1:
            with pytest.raises(ValueError, match=f"blocks of {WEIGHT_TYPES[name].block}"):
                encode_rows(rows[:, :-1].copy(), "f32", name, n_cols=255)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(STORED),
    st.sampled_from(["f32", "f16", "bf16", "q8_0", "q4_k", "q6_k", "q4_0"]),
    st.integers(0, 6),
    st.sampled_from([0, 2, 6, 16]),
    st.sampled_from([256, 512, 1 << 16]),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_against_numpy(kind, target, units, head_rows, n_cols, threads, seed):
    n_rows = units * (head_rows or 5)
    rng = np.random.default_rng(seed)
    raw = stored_rows(rng.standard_normal((n_rows, n_cols)), kind)
    values = np.ascontiguousarray(to_float32(raw, DTYPES[kind]))
    if head_rows and n_rows:  # as llama.cpp's converter states it
        halves = values.reshape(units, 2, head_rows // 2, n_cols)
        values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(n_rows, n_cols))
    found = encode_rows(raw, kind, target, n_cols=n_cols, head_rows=head_rows, n_threads=threads)
    np.testing.assert_array_equal(found, quantize(values, target, 1))


@pytest.mark.parametrize("target", FREE_TYPES)
def test_importance_is_used(target):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 512)).astype(np.float32)
    importance = rng.uniform(0.01, 10, 512).astype(np.float32) ** 2
    plain = encode_rows(rows, "f32", target, n_cols=512)
    weighed = encode_rows(rows, "f32", target, n_cols=512, importance=importance)
    assert np.array_equal(plain, weighed) == (target in ("f32", "f16", "bf16", "q8_0"))
    again = encode_rows(rows, "f32", target, n_cols=512, importance=importance, n_threads=3)
    np.testing.assert_array_equal(weighed, again)


@pytest.mark.parametrize("target", ["f32", "f16", "bf16", "q8_0", "q4_k", "iq4_xs"])
@pytest.mark.parametrize("kind", STORED)
def test_values_that_no_type_holds(target, kind):
    """Wherever they stand, and whatever the instruction set does with NaN."""
    limit = largest_value(target)
    for bad in (np.nan, np.inf, -np.inf, 1.01 * limit):
        with np.errstate(over="ignore"):
            wrong = stored_rows(np.array([bad]), kind)
        if np.abs(to_float32(wrong, DTYPES[kind])) <= limit:
            continue  # f16 cannot say it
        for at in (0, 255, 256, 3 * 256 + 7):
            rows = stored_rows(np.zeros(4 * 256), kind)
            rows[at] = wrong[0]
            assert encode_rows(rows, kind, target, n_cols=256) is None
    most = stored_rows(np.full((1, 256), min(limit, 60000.0)), kind)
    assert encode_rows(most, kind, target, n_cols=256) is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stored": "i8"}, "not a stored type"),
        ({"type": "q8_1"}, "cannot|not a type"),
        ({"type": "i32"}, "not a type"),
        ({"n_cols": 0}, "whole"),
        ({"n_cols": -256}, "whole"),
        ({"n_cols": 768}, "contiguous rows"),
        ({"head_rows": 3}, "whole heads"),
        ({"head_rows": 8}, "whole heads"),
        ({"head_rows": -2}, "whole heads"),
        ({"type": "iq2_xxs"}, "requires an importance"),
        ({"importance": np.ones(255, np.float32)}, "one importance for each"),
        ({"data": np.ones((4, 512), np.float32)[:, ::2]}, "contiguous"),
    ],
)
def test_wrong_arguments(arguments, words):
    good = {"data": np.ones((4, 256), np.float32), "stored": "f32", "type": "q4_k", "n_cols": 256}
    given = {**good, **arguments}
    data, stored, kind = (given.pop(k) for k in ("data", "stored", "type"))
    with pytest.raises(ValueError, match=words):
        encode_rows(data, stored, kind, **given)
