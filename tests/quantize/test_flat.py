"""Grids with one level of scales: kernels against a naive reference, their own objective, and ggml."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peers import ggml

from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.quantize.grids import FLAT, GRIDS, INT, Grid, grid
from gpt54_convert.quantize.kernels.flat import rtn, search
from gpt54_convert.quantize.kernels.groups import as_float16
from gpt54_convert.quantize.qtensor import E2M1_LEVELS, IQ4_LEVELS, QTensor

Array = NDArray[np.float32]
F32 = np.float32
FLATS = [name for name, each in GRIDS.items() if each.kind == FLAT]
INTS = [
    *(f"int{bits}-g32" for bits in range(2, 9)),
    *(f"int{bits}-g32-asym" for bits in range(2, 9)),
    *("int4-g16", "int4-g256", "int8-g128", "int4-g64-asym"),
    *("int2-channel", "int4-channel", "int8-channel", "int4-channel-asym", "int8-channel-asym"),
]
TINY, LARGEST = 2.0**-24, 65504.0


def weights(kind: str = "gauss", rows: int = 16, columns: int = 512, seed: int = 0) -> Array:
    """Random weights [rows, columns]: `gauss`, `heavy` (Student-t), `outliers`, `positive`, `offset`."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, columns)) * 0.02
    if kind == "heavy":
        values = generator.standard_t(4, (rows, columns))
    elif kind == "outliers":
        values[:, generator.integers(0, columns, columns // 64)] *= 12
    elif kind == "positive":
        values = np.abs(values)
    elif kind == "offset":
        values += 0.3
    return values.astype(F32)


def importances(columns: int = 512, seed: int = 1) -> Array:
    return np.exp(np.random.default_rng(seed).normal(0, 1.5, columns)).astype(F32)


def loss(weight: Array, values: Array, importance: Array | None, group: int) -> NDArray[np.float64]:
    """Σ importance · error² of each group."""
    error = (values.astype(np.float64) - weight) ** 2
    if importance is not None:
        error = error * importance
    return error.reshape(-1, group or weight.shape[1]).sum(axis=1)


def relative(weight: Array, values: Array, importance: Array | None = None) -> float:
    """Root of the (weighted) squared error over the (weighted) squares."""
    return float(
        np.sqrt(loss(weight, values, importance, 0).sum() / loss(weight, 0 * weight, importance, 0).sum())
    )


def half(x: float) -> np.float32:
    """float16 of x by NumPy, held off zero and infinity."""
    if x == 0:
        return F32(0)
    size = min(max(abs(float(x)), TINY), LARGEST)
    return F32(np.copysign(F32(np.float16(F32(size))), x))


def naive_group(x: Array, target: Grid) -> tuple[list[int], float, float]:
    """Codes, scale and offset of plain rounding, straight from the rules in the kernels' docstrings."""
    top = (1 << target.bits) - 1
    low, high = x.min(), x.max()
    if target.name == "mxfp4":
        peak = float(np.abs(x).max())
        code = 0 if peak == 0 else int(np.clip(np.floor(np.log2(peak)) - 2 + 127, 0, 252))
        code += peak / 2.0 ** (code - 127) > 7.25 and code < 252
        sizes = np.abs(x.astype(np.float64)) / 2.0 ** (code - 127)
        nearest = [
            int(np.argmin(np.abs(E2M1_LEVELS[:8] - size) + 1e-9 * (np.arange(8) % 2))) for size in sizes
        ]
        return [n + 8 * bool(v < 0 and n) for n, v in zip(nearest, x, strict=True)], code, 0
    if not target.symmetric:
        if target.kind == INT:
            low, high = min(low, F32(0)), max(high, F32(0))
            reach = F32(high * F32(0.5)) - F32(low * F32(0.5))
            scale = half(reach * F32(F32(2) / F32(top)))
            zero = np.rint(F32(F32(low * F32(-0.5)) / reach) * F32(top)) if reach else F32(0)
            return encode(x, scale, F32(-scale * zero), top), scale, int(zero)
        offset = half(low)
        reach = max(F32(high * F32(0.5)) - F32(offset * F32(0.5)), F32(0))
        scale = half(reach * F32(F32(2) / F32(top)))
        return encode(x, scale, offset, top), scale, offset
    peak = high if high > -low else low
    if target.name == "iq4_nl":
        scale = half(peak * F32(-1 / 127))
        inverse = F32(1) / scale if scale else F32(0)
        return [int(np.argmin(np.abs(IQ4_LEVELS - value * inverse))) for value in x], scale, 0
    if target.bits == 8:
        scale, lowest = half(abs(peak) * F32(1 / 127)), -128
    else:
        lowest = -(1 << (target.bits - 1))
        scale = half(peak * F32(1 / lowest))
    inverse = F32(1) / scale if scale else F32(0)
    return [int(np.clip(np.rint(value * inverse), lowest, -lowest - 1)) - lowest for value in x], scale, 0


def encode(x: Array, scale: np.float32, offset: np.float32, top: int) -> list[int]:
    inverse = F32(1) / scale if scale else F32(0)
    return [int(np.clip(np.rint((value - offset) * inverse), 0, top)) for value in x]


@pytest.mark.parametrize("kind", ["gauss", "heavy", "positive", "offset"])
@pytest.mark.parametrize("name", FLATS + INTS)
def test_rounding_is_that_of_a_naive_loop(name, kind):
    weight = weights(kind, 2, 512)
    q = rtn(weight, grid(name))
    group = q.grid.group or 512
    naive = [naive_group(x, q.grid) for x in weight.reshape(-1, group)]
    np.testing.assert_array_equal(q.codes.reshape(-1, group), [codes for codes, _, _ in naive])
    np.testing.assert_array_equal(q.scale.reshape(-1).astype(F32), [scale for _, scale, _ in naive])
    if q.offset is not None:
        np.testing.assert_array_equal(q.offset.reshape(-1).astype(F32), [offset for _, _, offset in naive])


@pytest.mark.parametrize("solve", [rtn, search])
@pytest.mark.parametrize(("name", "same"), [("int4-g32", "q4_0"), ("int5-g32", "q5_0"), ("int8-g32", "q8_0")])
def test_integer_grids_and_ggml_types_are_the_same_numbers(name, same, solve):
    weight = weights("heavy")
    ours, theirs = solve(weight, grid(name)), solve(weight, grid(same))
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    np.testing.assert_array_equal(ours.scale, theirs.scale)


@pytest.mark.parametrize("name", FLATS + INTS)
def test_types_and_shapes(name):
    weight = weights(rows=3)
    for q in (rtn(weight, grid(name)), search(weight, grid(name), importances())):
        groups = 512 // q.grid.group if q.grid.group else 1
        assert q.codes.dtype == np.uint8 and q.shape == (3, 512)
        assert q.codes.max() < 1 << q.grid.bits
        assert q.scale.dtype == (np.uint8 if name == "mxfp4" else np.float16)
        assert q.scale.shape == (3, groups)
        assert (q.offset is None) == q.grid.symmetric
        if q.offset is not None:
            assert q.offset.shape == (3, groups)
            assert q.offset.dtype == (np.uint8 if q.grid.kind == INT else np.float16)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(FLATS + INTS),
    kind=st.sampled_from(["gauss", "heavy", "outliers", "positive", "offset"]),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    weighted=st.booleans(),
)
def test_search_is_never_worse_than_rounding(name, kind, seed, size, weighted):
    weight = weights(kind, 2, 256, seed) * F32(size)
    importance = importances(256, seed) if weighted else None
    found, plain = search(weight, grid(name), importance), rtn(weight, grid(name))
    group = grid(name).group
    ours = loss(weight, found.dequantize(), importance, group)
    assert (ours <= loss(weight, plain.dequantize(), importance, group) * (1 + 1e-6)).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0", "iq4_nl", "int2-g32", "int3-g32", "int4-g128"])
def test_search_comes_near_the_best_of_all_scales(name, weighted):
    """Within 2 % of the error of the best of 500 scales a group, each tried as stored.

    (8 bits, weighted, within 10 %: there some of so many scales always hit the one column that matters.)
    """
    weight, target = weights("heavy", 8), grid(name)
    importance = importances() if weighted else None
    levels = (
        IQ4_LEVELS if name == "iq4_nl" else np.arange(1 << target.bits, dtype=F32) - (1 << (target.bits - 1))
    )
    x = weight.reshape(-1, target.group)
    w = np.broadcast_to(np.ones(512) if importance is None else importance, weight.shape).reshape(x.shape)
    peak = x[np.arange(len(x)), np.abs(x).argmax(axis=1)]
    middles = (levels[1:] + levels[:-1]) / 2
    best = np.full(len(x), np.inf)
    for level in np.concatenate([np.linspace(0.5, 1.8, 400), -np.linspace(0.5, 1.8, 100)]):
        scale = (peak / (levels[0] * F32(level))).astype(np.float16).astype(F32)[:, None]
        best = np.fmin(best, (w * (x - levels[np.searchsorted(middles, x / scale)] * scale) ** 2).sum(axis=1))
    ours = loss(weight, search(weight, target, importance).dequantize(), importance, target.group).sum()
    assert ours < best.sum() * (1.1 if weighted and target.bits == 8 else 1.02) ** 2


@pytest.mark.parametrize("name", FLATS)
def test_errors_against_ggml(name):
    """Plain rounding within 1 % of ggml's error; search below ggml's, with and without importances."""
    if not ggml.available():
        pytest.skip(ggml.MISSING)
    importance = importances()
    for kind in ("gauss", "heavy", "outliers"):
        weight = weights(kind, 64)
        theirs = ggml.dequantize(ggml.quantize(weight, name), name, weight.shape)
        plain = relative(weight, theirs)
        if name != "iq4_nl":  # ggml has no plain rounding for it
            assert relative(weight, rtn(weight, grid(name)).dequantize()) < plain * 1.01
        assert relative(weight, search(weight, grid(name)).dequantize()) < plain
        if name.upper() in ggml.TAKES_IMPORTANCE:
            theirs = ggml.dequantize(ggml.quantize(weight, name, importance), name, weight.shape)
        ours = search(weight, grid(name), importance).dequantize()
        assert relative(weight, ours, importance) < relative(weight, theirs, importance)


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e4])
@pytest.mark.parametrize("name", FLATS)
def test_weights_beyond_float16s_scales(name, size):
    """Never more than 1 % worse than ggml, also where scales of their size cannot be stored."""
    if not ggml.available():
        pytest.skip(ggml.MISSING)
    weight = weights("gauss", 16) * F32(size)
    theirs = ggml.dequantize(ggml.quantize(weight, name), name, weight.shape)
    assert relative(weight, search(weight, grid(name)).dequantize()) <= relative(weight, theirs) * 1.01


@pytest.mark.parametrize("solve", [rtn, search])
@pytest.mark.parametrize("name", FLATS + INTS)
def test_degenerate_weights(name, solve):
    columns = 256
    weight = np.zeros((14, columns), F32)
    weight[1], weight[2] = 0.7, -0.7  # constant
    weight[3, 5] = 3.0  # a single element
    weight[4, 7] = -3.0
    weight[5] = 1e-9  # below float16's smallest size
    weight[6] = np.tile([3e-8, -5e-8], columns // 2)  # subnormal in float16
    weight[7] = np.tile([1e6, -2e6, 5e5, 0], columns // 4)  # scales beyond float16's largest
    weight[8] = np.tile([3e38, -3e38], columns // 2)
    weight[9, 0] = 3.4e38
    weight[10] = np.tile(F32([1e-45, -1e-45, 1e-40, 0]), columns // 4)  # subnormal in float32
    weight[11] = np.tile([1, -1], columns // 2)  # equally far to both sides
    weight[12] = -0.0
    weight[13] = np.linspace(-1, 1, columns)
    for importance in (None, np.zeros(columns, F32), importances(columns)):
        q = solve(weight, grid(name), importance)
        values = q.dequantize()
        assert np.isfinite(values).all()
        assert (values[[0, 12]] == 0).all()
        limit = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) * 1.4 + 2048 * TINY
        assert (np.abs(values) <= limit).all()
        if q.scale.dtype == np.float16:
            assert np.isfinite(q.scale).all()
        steps = {2: 1.4, 3: 0.5, 4: 0.3}.get(q.grid.bits, 0.15)  # generously half of a level
        ordinary = [1, 2, 3, 4, 11, 13]
        error = np.abs(values - weight)[ordinary] / np.abs(weight[ordinary]).max(axis=1, keepdims=True)
        if importance is None or solve is rtn:
            assert error.max() < steps, (error.max(axis=1), name)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "int4-g32-asym", "iq4_nl", "mxfp4"])
def test_importances_of_any_scale_and_zeros(name):
    weight, importance = weights(), importances()
    importance[:40] = 0
    expected = search(weight, grid(name), importance).codes
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(search(weight, grid(name), importance * F32(factor)).codes, expected)


def test_a_column_that_matters_is_kept():
    weight, importance = weights("heavy"), np.ones(512, F32)
    importance[77] = 1e4
    for name in ("q4_0", "q4_1", "iq4_nl", "int3-g64", "int4-channel-asym"):
        plain = np.abs(search(weight, grid(name)).dequantize() - weight)[:, 77].mean()
        kept = np.abs(search(weight, grid(name), importance).dequantize() - weight)[:, 77].mean()
        assert kept < plain / 2


@pytest.mark.parametrize("solve", [rtn, search])
@pytest.mark.parametrize("name", ["q4_0", "q5_1", "iq4_nl", "mxfp4", "int4-channel", "int8-g32-asym"])
def test_rows_do_not_touch_each_other(name, solve):
    """Any chunk of rows gives the codes that the whole gives, read-only and strided input alike."""
    weight, importance = weights("heavy", 9), importances()
    whole = solve(weight, grid(name), importance)
    weight.flags.writeable = False
    part = solve(weight[3:7], grid(name), importance)
    np.testing.assert_array_equal(part.codes, whole.codes[3:7])
    np.testing.assert_array_equal(part.scale, whole.scale[3:7])
    wide = np.repeat(weight, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(solve(wide, grid(name), importance).codes, whole.codes)


@pytest.mark.parametrize("columns", [1, 7, 33, 100])
def test_channels_of_any_length(columns):
    weight = weights("heavy", 5, columns)
    for name in ("int4-channel", "int8-channel-asym"):
        q, plain = search(weight, grid(name)), rtn(weight, grid(name))
        assert (
            loss(weight, q.dequantize(), None, 0) <= loss(weight, plain.dequantize(), None, 0) * 1.000001
        ).all()


def test_refusals():
    weight = weights()
    with pytest.raises(InternalError, match="q4_0"):
        rtn(weight[:, :40].copy(), grid("q4_0"))
    with pytest.raises(InternalError, match="importance has shape"):
        search(weight, grid("q4_0"), np.ones(3, F32))
    for bad in (-1.0, np.nan, np.inf):
        importance = importances()
        importance[9] = bad
        with pytest.raises(InputError, match="column 9"):
            search(weight, grid("q4_0"), importance)


def test_float16_numbers_are_cast_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits[np.isfinite(bits.view(np.float16))].view(np.float16)
    found = as_float16(numbers.astype(F32))
    np.testing.assert_array_equal(found.view(np.uint16), numbers.view(np.uint16))


def test_no_rows():
    q: QTensor = search(np.empty((0, 64), F32), grid("q4_0"))
    assert q.codes.shape == (0, 64) and q.scale.shape == (0, 2)
