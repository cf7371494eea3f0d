"""Relative error against a naive float64 sum, for every kind of grid."""

import numpy as np
import pytest

from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.solvers import rtn


@pytest.mark.parametrize(
    "name", ["int4-g32", "int3-g16-asym", "int8-channel", "q4_1", "q8_0", "iq4_nl", "mxfp4", "q4_k", "q6_k"]
)
def test_equals_a_naive_sum(name):
    weight = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    q = rtn.solve(weight, grid(name))
    difference = (weight - q.dequantize()).astype(np.float64)
    expected = np.sqrt((difference**2).sum() / (weight.astype(np.float64) ** 2).sum())
    tally = ErrorTally()
    tally.add(0, weight, q)
    assert tally.relative == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 0.5


def test_rows_of_any_length_per_channel():
    weight = np.random.default_rng(1).standard_normal((3, 37)).astype(np.float32)
    q = rtn.solve(weight, grid("int8-channel"))
    tally = ErrorTally()
    tally.add(0, weight, q)
    difference = (weight - q.dequantize()).astype(np.float64)
    assert tally.relative == pytest.approx(np.sqrt((difference**2).sum() / (weight**2).sum()), rel=1e-4)


def test_chunks_count_once_and_in_any_order():
    weight = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    whole, parts = ErrorTally(), ErrorTally()
    whole.add(0, weight, rtn.solve(weight, grid("int4-g32")))
    for start in (4, 0, 4):
        parts.add(start, weight[start : start + 4], rtn.solve(weight[start : start + 4], grid("int4-g32")))
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


def test_zeros_have_no_error():
    weight = np.zeros((2, 64), np.float32)
    tally = ErrorTally()
    tally.add(0, weight, rtn.solve(weight, grid("int4-g32")))
    assert tally.relative == 0
