"""Picking rows and columns lazily gives what NumPy's own indexing gives, in any reading order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt54_convert.core import picks, views
from gpt54_convert.core.tensor import LazyTensor


def lazy(values, reads=None):
    def read(start, stop):
        if reads is not None:
            reads.append((start, stop))
        return values[start:stop]

    return LazyTensor("w", values.shape, "float32", read)


@given(st.data())
def test_any_pick_of_any_range(data):
    rows, columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    values = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    axis = data.draw(st.integers(0, 1))
    wanted = np.array(data.draw(st.lists(st.integers(0, values.shape[axis] - 1), min_size=1)), np.intp)
    turned = data.draw(st.booleans())
    source = views.transposed(lazy(values.T.copy())) if turned else lazy(values)
    found = picks.picked(source, axis, wanted)
    expected = np.take(values, wanted, axis)
    assert found.shape == expected.shape
    start = data.draw(st.integers(0, found.row_count - 1))
    stop = data.draw(st.integers(start + 1, found.row_count))
    assert np.array_equal(found.rows(start, stop), expected[start:stop])


def test_everything_in_order_is_the_tensor_itself():
    tensor = lazy(np.ones((4, 3), np.float32))
    assert picks.picked(tensor, 0, np.arange(4)) is tensor
    assert picks.scaled(tensor, 1.0) is tensor


def test_a_far_row_is_not_bridged():
    """Two rows at both ends of a large tensor do not read what lies between."""
    reads = []
    tensor = lazy(np.zeros((10_000, 8), np.float32), reads)
    picks.picked(tensor, 0, np.array([3, 5, 9_990])).rows(0, 3)
    assert sum(stop - start for start, stop in reads) < 20


def test_columns_of_a_wide_tensor_are_gathered_in_small_reads():
    """The rows of the source are 512 times as long as those wanted: a chunk of the result is many of them."""
    reads = []
    tensor = lazy(np.zeros((600, 32_768), np.float32), reads)
    found = picks.picked(tensor, 1, np.arange(0, 32_768, 512))
    (whole,) = found.chunks()
    found.rows(*whole)
    assert max(stop - start for start, stop in reads) * 32_768 * 4 <= 4 << 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scaling_keeps_the_type_and_minds_the_shift(dtype):
    from gpt54_convert.core.dtypes import from_float32, to_float32

    gain = np.linspace(-0.5, 0.5, 16, dtype=np.float32)  # stored less one
    stored = from_float32(gain, dtype)
    tensor = LazyTensor("norm", (16,), dtype, lambda start, stop: stored[start:stop])
    found = to_float32(picks.scaled(tensor, 1.5, 1.0).rows(0, 16), dtype)
    assert np.allclose(
        found + 1, (to_float32(stored, dtype) + 1) * 1.5, atol=8e-3 if dtype == "bfloat16" else 1e-6
    )
