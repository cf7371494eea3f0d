"""Tensors of a mix are rounded once, and give what rounding gives."""

import numpy as np
import pytest

from gpt54_convert.calibrate.spool import Spool
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import OutputError
from gpt54_convert.quantize.encode import on_grid, solver
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import grid

WEIGHT = np.random.default_rng(1).standard_normal((600, 512)).astype(np.float32)


@pytest.fixture
def spool():
    made = Spool()
    yield made
    made.close()


def rounded(name: str, target, calls: list):
    def solve(weight, wanted, statistics=None):
        calls.append((name, wanted.name))
        return solver("rtn")(weight, wanted, statistics)

    tensor = LazyTensor(name, WEIGHT.shape, "float32", lambda start, stop: WEIGHT[start:stop])
    return on_grid(tensor, target, solve, ErrorTally())


@pytest.mark.parametrize("name", ["int4-g32", "q4_k", "iq4_nl"])
def test_read_in_any_order_it_is_rounded_once(name, spool):
    target, calls = grid(name), []
    spool.begin([("a", target)])
    kept = spool.kept(rounded("a", target, calls), target)
    expected = solver("rtn")(WEIGHT, target, None).dequantize()
    for start, stop in [(300, 301), (0, 600), (17, 90)]:
        np.testing.assert_array_equal(kept.float_rows(start, stop), expected[start:stop])
    assert len(calls) == len(list(kept.chunks()))


def test_the_next_mix_keeps_what_both_have_and_no_more(spool):
    four, six, calls = grid("q4_k"), grid("q6_k"), []
    spool.begin([("a", four), ("b", four)])
    for name in "ab":
        spool.kept(rounded(name, four, calls), four).float_rows(0, 1)
    assert {name for name, _ in calls} == {"a", "b"}
    calls.clear()
    spool.begin([("a", four), ("b", six)])
    spool.kept(rounded("a", four, calls), four).float_rows(0, 1)
    spool.kept(rounded("b", six, calls), six).float_rows(0, 1)
    assert set(calls) == {("b", "q6_k")}
    calls.clear()
    spool.begin([("b", four)])
    spool.kept(rounded("b", four, calls), four).float_rows(0, 1)
    assert set(calls) == {("b", "q4_k")}, "it was dropped and is made again"


def test_a_full_disk_is_an_error_of_the_output(spool, monkeypatch):
    target = grid("int4-g32")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    kept = spool.kept(rounded("a", target, []), target)
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OutputError, match="is full"):
        kept.float_rows(0, 1)
