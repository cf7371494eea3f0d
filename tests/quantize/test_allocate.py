"""The allocation is the best that fits: against every choice, an integer program, plain programming."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt54_convert.quantize import allocate as module
from gpt54_convert.quantize.allocate import allocate, smallest


def items(generator, count, options):
    costs, losses = [], []
    for _ in range(count):
        size = int(generator.integers(1, 400))
        bits = np.sort(generator.choice(np.arange(2, 17), options, replace=False))
        costs.append((size * bits).astype(np.int64))
        losses.append(generator.exponential() * size * 4.0**-bits * generator.uniform(0.5, 2, options))
    return costs, losses


def brute_force(costs, losses, budget):
    best = None
    for options in itertools.product(*(range(len(cost)) for cost in costs)):
        size = sum(int(cost[o]) for cost, o in zip(costs, options, strict=True))
        loss = sum(float(value[o]) for value, o in zip(losses, options, strict=True))
        if size <= budget and (best is None or loss < best):
            best = loss
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.floats(0, 1))
def test_equals_every_choice_tried(seed, count, options, share):
    costs, losses = items(np.random.default_rng(seed), count, options)
    low, high = smallest(costs), sum(int(cost.max()) for cost in costs)
    budget = int(low + share * (high - low))
    found = allocate(costs, losses, budget)
    assert found is not None and found.size_bytes <= budget and found.gap == 0
    assert found.loss == pytest.approx(brute_force(costs, losses, budget), rel=1e-9)
    assert found.size_bytes == sum(int(cost[o]) for cost, o in zip(costs, found.options, strict=True))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_equals_an_integer_program(share):
    from scipy import optimize

    costs, losses = items(np.random.default_rng(7), 24, 5)
    budget = int(smallest(costs) + share * (sum(int(c.max()) for c in costs) - smallest(costs)))
    choose_one = np.kron(np.eye(24), np.ones(5))
    found = optimize.milp(
        np.concatenate(losses),
        constraints=[
            optimize.LinearConstraint(choose_one, 1, 1),
            optimize.LinearConstraint(np.concatenate(costs)[None], 0, budget),
        ],
        integrality=np.ones(120),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert allocate(costs, losses, budget).loss == pytest.approx(found.fun, rel=1e-6)


def test_a_real_models_size_is_solved_exactly_and_at_once():
    """300 tensors of a few shapes, 9 grids; plain dynamic programming over units of the sizes' divisor."""
    generator = np.random.default_rng(1)
    costs, losses = [], []
    for _ in range(300):
        rows = int(generator.choice([4, 6, 16, 24]))
        costs.append(rows * np.array([17, 18, 20, 22, 24, 34, 64], np.int64))
        losses.append(generator.exponential() * rows * np.array([5, 4, 2.2, 1.1, 0.6, 0.02, 0.0]))
    budget = int(1.21 * smallest(costs))
    best = np.full(budget + 1, 0.0)
    for cost, loss in zip(costs, losses, strict=True):
        following = np.full(budget + 1, np.inf)
        for size, value in zip(cost, loss, strict=True):
            following[size:] = np.minimum(following[size:], best[: budget + 1 - size] + value)
        best = following
    found = allocate(costs, losses, budget)
    assert found.gap == 0
    assert found.loss == pytest.approx(best[budget], rel=1e-9)


def test_what_does_not_fit_and_what_fits_whole():
    costs = [np.array([10, 20]), np.array([30, 5])]
    losses = [np.array([1.0, 0.5]), np.array([0.0, 2.0])]
    assert smallest(costs) == 15
    assert allocate(costs, losses, 14) is None
    assert allocate(costs, losses, 15).options == (0, 1)
    assert allocate(costs, losses, 10**9).options == (1, 0)


def test_equal_losses_take_the_smaller():
    found = allocate([np.array([9, 4, 4])], [np.array([1.0, 1.0, 1.0])], 100)
    assert found.options == (1,)


def test_a_thinned_front_owns_up_to_what_it_may_cost(monkeypatch):
    costs, losses = items(np.random.default_rng(3), 8, 4)
    budget = int(1.5 * smallest(costs))
    exact = allocate(costs, losses, budget)
    monkeypatch.setattr(module, "_FRONT", 3)
    thinned = allocate(costs, losses, budget)
    assert exact.loss <= thinned.loss <= exact.loss + thinned.gap + 1e-12
