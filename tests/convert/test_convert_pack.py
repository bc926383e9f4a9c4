"""pack and unpack against each other, a plain sort, and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sardine_gguf.convert import schema
from sardine_gguf.convert.pack import (
    count,
    flat_offset,
    pack,
    split,
    unpack,
    value_scale,
)
from scipy.sparse import csr_matrix

shapes = st.tuples(st.integers(1, 12), st.integers(1, 40))


@st.composite
def matrices(draw):
    n_rows, n_cols = draw(shapes)
    flat = draw(st.lists(st.integers(0, n_rows * n_cols - 1), unique=True, max_size=60))
    width = draw(st.one_of(st.integers(1, 45), st.sampled_from([64, 65535, 65536])))
    return n_rows, n_cols, np.array(flat, np.int64), width


@given(matrices())
@settings(max_examples=300, deadline=None)
def test_round_trip_and_rules(case):
    n_rows, n_cols, flat, width = case
    packed, order = pack(flat, n_rows, n_cols, width)
    n_blocks = -(-n_cols // width)
    assert packed.row_ptr.dtype == np.int32
    assert packed.col.dtype == np.uint16
    assert len(packed.row_ptr) == n_blocks * n_rows + 1
    assert packed.row_ptr[0] == 0
    assert packed.row_ptr[-1] == len(flat) == len(packed.col)
    assert sorted(order) == list(range(len(flat)))
    np.testing.assert_array_equal(unpack(packed), flat[order])

    def key(p):
        row, col = divmod(int(p), n_cols)
        return col // width, row, col

    np.testing.assert_array_equal(flat[order], sorted(flat, key=key))


@given(matrices(), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_one_block_is_csr(case, seed):
    n_rows, n_cols, flat, _ = case
    values = np.random.default_rng(seed).standard_normal(len(flat)) + 3.0
    packed, order = pack(flat, n_rows, n_cols, 65536)
    expected = csr_matrix((values, divmod(flat, n_cols)), shape=(n_rows, n_cols))
    expected.sort_indices()
    np.testing.assert_array_equal(packed.row_ptr, expected.indptr)
    np.testing.assert_array_equal(packed.col, expected.indices)
    np.testing.assert_array_equal(values[order], expected.data)


@given(matrices())
@settings(max_examples=100, deadline=None)
def test_each_block_is_csr_of_its_columns(case):
    n_rows, n_cols, flat, width = case
    packed, _ = pack(flat, n_rows, n_cols, width)
    dense = np.zeros((n_rows, n_cols), bool)
    dense.reshape(-1)[flat] = True
    for b in range(-(-n_cols // width)):
        part = csr_matrix(dense[:, b * width : (b + 1) * width])
        ptr = packed.row_ptr[b * n_rows : (b + 1) * n_rows + 1]
        np.testing.assert_array_equal(ptr - ptr[0], part.indptr)
        np.testing.assert_array_equal(packed.col[ptr[0] : ptr[-1]], part.indices)


def test_widest_column_fits_sixteen_bits():
    packed, _ = pack(np.array([65535, 65536, 131071]), 1, 131072, 65536)
    assert packed.col.tolist() == [65535, 0, 65535]
    assert packed.row_ptr.tolist() == [0, 1, 3]


@pytest.mark.parametrize("width", [0, -1, 65537])
def test_refuses_other_widths(width):
    with pytest.raises(ValueError, match="block_columns"):
        pack(np.array([0]), 1, 1, width)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=100, deadline=None)
def test_split_by_matrix(hidden, inner, data):
    total = 3 * hidden * inner
    flat = np.array(
        data.draw(st.lists(st.integers(0, total - 1), unique=True, max_size=50)), np.int64
    )
    members = split(flat, hidden, inner)
    assert {m: len(v) for m, v in members.items()} == count(flat, hidden, inner)
    assert sorted(np.concatenate(list(members.values()))) == list(range(len(flat)))
    for matrix, numbers in members.items():
        local = flat[numbers] - flat_offset(matrix, hidden, inner)
        assert ((local >= 0) & (local < hidden * inner)).all()


@given(st.floats(2.0**-100, 2.0**100, width=32), st.sampled_from(["f16", "q8_0"]))
@settings(max_examples=200, deadline=None)
def test_scale_puts_the_largest_value_into_range(largest, kind):
    values = np.array([[0.0, -largest, largest / 2]], np.float32)
    (scale,) = value_scale(values, kind)
    assert np.frexp(scale)[0] == 0.5
    assert 2**10 <= largest / scale < 2**11
    assert (values / scale * scale == values).all()


def test_scale_of_zeros_float32_and_the_smallest_numbers():
    tiny = np.finfo(np.float32).smallest_subnormal
    values = np.array([[0.0, 0.0], [tiny, 0.0]], np.float32)
    zero, small = value_scale(values, "q8_0")
    assert zero == 1
    assert small == np.float32(2.0**-126)
    assert value_scale(values + 5, "f32").tolist() == [1, 1]
    assert value_scale(np.zeros((3, 0), np.float32), "f16").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("hidden", "inner", "expected"),
    [(1, 1, 8192), (64, 8192, 8192), (5120, 16384, 5472), (8192, 28672, 5760), (8193, 4, 4128)],
)
def test_default_block_columns(hidden, inner, expected):
    """One block as far as it goes, then equal ones: the last is at most 32 columns a block short."""
    columns = schema.default_block_columns(hidden, inner)
    assert columns == expected
    n_blocks = -(-max(hidden, inner) // columns)
    if max(hidden, inner) > schema.DEFAULT_BLOCK_COLUMNS:
        assert n_blocks * columns - max(hidden, inner) < 32 * n_blocks
    assert columns <= schema.MAX_BLOCK_COLUMNS
