"""Second-order solvers on their own objective, tr(E H Eᵀ), against plain loops and on degenerate input."""

import numpy as np
import pytest

from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.quantize.encode import solver
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.solvers import _descent, _feedback, _moment, auto
from gpt54_convert.quantize.statistics import Statistics

GRIDS = (
    *("int4-g32", "int4-g32-asym", "int3-g64", "int4-channel", "int8-channel", "q4_0", "q4_1", "q5_1"),
    *("iq4_nl", "mxfp4", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"),
)
COLUMNS = 512


def inputs(kind: str, tokens: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((tokens, COLUMNS))
    if kind == "correlated":
        x = (x @ rng.standard_normal((COLUMNS, COLUMNS)) / 20 + x) * np.exp(rng.normal(0, 1, COLUMNS))
    return x.astype(np.float32)


def statistics(x: np.ndarray) -> Statistics:
    moment = (x.T @ x / len(x)).astype(np.float32)
    return Statistics(np.diagonal(moment).copy(), len(x), np.abs(x).max(axis=0), moment)


def weights(rows: int = 24) -> np.ndarray:
    return (np.random.default_rng(6).standard_t(5, (rows, COLUMNS)) * 0.05).astype(np.float32)


def errors(q, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Mean squared output error of each row, from the inputs themselves."""
    return ((x @ (q.dequantize() - weight).T) ** 2).mean(axis=0)


@pytest.mark.parametrize("kind", ["white", "correlated"])
@pytest.mark.parametrize("name", GRIDS)
def test_no_row_is_worse_than_rounding_or_search(name, kind):
    x, weight, target = inputs(kind), weights(), grid(name)
    known = statistics(x)
    found = errors(solver("gptq")(weight, target, known), weight, x)
    for other in ("rtn", "search", "imatrix"):
        assert (found <= errors(solver(other)(weight, target, known), weight, x) * 1.001).all(), other
    if kind == "correlated":
        assert found.sum() < 0.8 * errors(solver("imatrix")(weight, target, known), weight, x).sum()


@pytest.mark.parametrize("name", ["int4-g32", "q4_k", "iq4_nl"])
def test_auto_is_the_best_of_its_ways(name):
    x, weight, target = inputs("correlated", 600), weights(), grid(name)
    known = statistics(x)
    found = errors(solver("auto")(weight, target, known), weight, x)
    ways = auto.candidates(weight, target, known)
    assert len(ways) == 4
    for way, q in {**ways, "gptq": solver("gptq")(weight, target, known)}.items():
        assert (found <= errors(q, weight, x) * 1.001).all(), way


def damped(known):
    """The moment that is worked with, in float64."""
    return known.moment.astype(np.float64) + _moment.damping(known) * np.eye(len(known.moment))


def naive_gptq(weight, scale, moment, order):
    """Column by column as in the paper, with scales fixed beforehand: int4 groups of 32."""
    left, codes = weight.astype(np.float64)[:, order], np.zeros(weight.shape, np.uint8)
    inverse = np.linalg.inv(moment[np.ix_(order, order)])
    for j, column in enumerate(order):
        s = scale[:, column // 32].astype(np.float64)
        code = np.clip(np.rint(left[:, j] / s), -8, 7)
        codes[:, column] = code + 8
        error = (left[:, j] - code * s) / inverse[0, 0]
        left[:, j + 1 :] -= error[:, None] * inverse[0, 1:]
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return codes


def test_feedback_is_that_of_the_paper():
    """One unit of 64 columns, whose scales do not depend on feedback, beside a plain loop in float64."""
    x = inputs("correlated")[:, :64]
    weight, known = weights(16)[:, :64].copy(), statistics(x)
    moment = damped(known)
    target = grid("int4-channel")
    found = _feedback.quantize(weight, target, known.moment, _moment.damping(known))
    order = _feedback.unit_order(np.diagonal(moment), 64)
    expected = naive_gptq(weight, np.repeat(found.scale, 2, axis=1), moment, order)
    assert (found.codes == expected).mean() > 0.999  # a tie may fall either way in float32


@pytest.mark.parametrize("name", GRIDS)
def test_descent_only_goes_down_and_knows_its_own_error(name):
    x, weight, target = inputs("correlated"), weights(8), grid(name)
    moment = damped(statistics(x))
    q, last = solver("rtn")(weight, target, None), np.inf
    slope = ((q.dequantize() - weight) @ moment).astype(np.float32)
    for _ in range(3):
        q = _descent.sweep(q, slope, moment.astype(np.float32))
        now = _moment.row_errors(q.dequantize() - weight, moment).sum()
        assert now <= last * (1 + 1e-6)
        last = now
        true = (q.dequantize() - weight).astype(np.float64) @ moment
        np.testing.assert_allclose(slope, true, atol=2e-3 * np.abs(true).max())


DEGENERATE = {
    "dead channels": lambda x: x * (np.arange(COLUMNS) % 3 > 0),
    "one token": lambda x: x[:1],
    "all zero": lambda x: x * 0,
    "one direction": lambda x: x[:, :1] * np.ones((1, COLUMNS), np.float32),
    "tiny": lambda x: x * np.float32(1e-18),
    "huge": lambda x: x * np.float32(1e12),
}


@pytest.mark.parametrize("what", DEGENERATE)
@pytest.mark.parametrize("name", ["int4-g32", "q4_k", "q3_k", "iq4_nl"])
def test_degenerate_inputs_give_sound_codes(name, what):
    x = DEGENERATE[what](inputs("white")).astype(np.float32)
    weight = weights(6)
    weight[0] = 0
    weight[1, :256] = 0.25
    q = solver("gptq")(weight, grid(name), statistics(x))
    values = q.dequantize()
    assert np.isfinite(values).all()
    rounded = solver("rtn")(weight, grid(name), None)
    assert (errors(q, weight, x) <= errors(rounded, weight, x) * 1.001 + 1e-30).all()
    # A channel that calibration never saw still gets a weight near its own.
    assert np.abs(values - weight).max() < 12 * np.abs(rounded.dequantize() - weight).max() + 1e-6


@pytest.mark.parametrize("method", ["auto", "gptq", "imatrix"])
def test_what_is_not_finite_is_refused(method):
    known = statistics(inputs("white"))
    bad = weights(3)
    bad[1, 7] = np.nan
    with pytest.raises(InputError, match="row 1, column 7 is nan"):
        solver(method)(bad, grid("int4-g32"), known)
    for value in (np.nan, np.inf):
        known.mean_square[3] = value
        with pytest.raises(InputError, match="activation is not finite"):
            solver(method)(weights(3), grid("int4-g32"), known)


@pytest.mark.parametrize("method", ["auto", "gptq", "imatrix"])
def test_statistics_are_demanded(method):
    with pytest.raises(InternalError, match="needs the"):
        solver(method)(weights(2), grid("int4-g32"), None)
    with pytest.raises(InternalError, match="columns"):
        solver(method)(weights(2)[:, :256].copy(), grid("int4-g32"), statistics(inputs("white")))


def test_the_factor_is_that_of_the_inverse_in_any_order():
    known = statistics(inputs("correlated"))
    order = np.random.default_rng(1).permutation(COLUMNS)
    factor = _moment.inverse_factor(known.moment, order, _moment.damping(known)).astype(np.float64)
    expected = np.linalg.inv(damped(known)[np.ix_(order, order)])
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T @ factor, expected, atol=1e-5 * np.abs(expected).max())


def test_a_singular_moment_is_damped_until_it_is_not():
    moment = np.ones((64, 64)) * 4
    factor = _moment.inverse_factor(moment, np.arange(64), 1e-20)
    assert np.isfinite(factor).all() and (np.diagonal(factor) > 0).all()
    with pytest.raises(InputError, match="no moments"):
        _moment.inverse_factor(-np.eye(64), np.arange(64), 1e-20)
