"""Which grid for which tensor: the least loss that fits a number of bytes, proven to be the least.

A multiple-choice knapsack: every item (a tensor) takes one of its options (grids), each with a size and a
loss.  The Lagrangian relaxation gives a price a byte and a bound (Sinha and Zoltners 1979); then items are
added one by one to a front of partial choices of which none is better than another in both size and loss
(dynamic programming by lists, Nemhauser and Ullmann 1969), and whatever cannot beat the best known choice
even at that price is dropped.  Sizes are exact bytes: nothing is rounded to a coarser unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = Sequence[NDArray[np.int64]]
Losses = Sequence[NDArray[np.float64]]

_FRONT = 200_000  # partial choices kept; beyond it neighbours are merged and `gap` says what that may cost


@dataclass(frozen=True)
class Allocation:
    """The option of every item, their total size and loss, and how far from the least the loss may be."""

    options: tuple[int, ...]
    size_bytes: int
    loss: float
    gap: float


def smallest(costs: Costs) -> int:
    """Bytes of the smallest choice there is."""
    return int(sum(int(cost.min()) for cost in costs))


def allocate(costs: Costs, losses: Losses, budget: int) -> Allocation | None:
    """The choice of least total loss among those of at most `budget` bytes; None where not even one fits.

    costs, losses: for every item the bytes and the loss of each of its options.  Among equals the smaller
    choice wins, then the earlier option.  Losses must be finite and not negative.
    """
    if smallest(costs) > budget:
        return None
    price = _price(costs, losses, budget)
    incumbent = _greedy(costs, losses, budget, price)
    return _exact(costs, losses, budget, price, incumbent)


def _at_price(costs: Costs, losses: Losses, price: float) -> list[int]:
    """The best option of each item where a byte costs `price`; the smaller one of equals."""
    return [int(np.lexsort((cost, loss + price * cost))[0]) for cost, loss in zip(costs, losses, strict=True)]


def _total(values: Sequence[NDArray[np.generic]], options: Sequence[int]) -> float:
    return float(sum(float(value[option]) for value, option in zip(values, options, strict=True)))


def _price(costs: Costs, losses: Losses, budget: int) -> float:
    """The price at which the relaxed choice just fits, from above: its choice fits the budget."""
    if _total(costs, _at_price(costs, losses, 0.0)) <= budget:
        return 0.0
    low, high = 0.0, 1.0
    while _total(costs, _at_price(costs, losses, high)) > budget:
        high *= 4
        if high > 1e30:  # only the smallest choice fits: losses that no price outweighs
            return high
    for _ in range(200):
        middle = (low + high) / 2 if low else high / 4
        if middle in (low, high):
            break
        if _total(costs, _at_price(costs, losses, middle)) > budget:
            low = middle
        else:
            high = middle
    return high


def _greedy(costs: Costs, losses: Losses, budget: int, price: float) -> list[int]:
    """The relaxed choice, then the step that saves most loss while any fits."""
    options = _at_price(costs, losses, price)
    if _total(costs, options) > budget:
        options = [int(np.lexsort((loss, cost))[0]) for cost, loss in zip(costs, losses, strict=True)]
    left = budget - int(_total(costs, options))
    while True:
        best, step = 0.0, None
        for item, option in enumerate(options):
            gains = losses[item][option] - losses[item]
            fits = costs[item] - costs[item][option] <= left
            at = int(np.argmax(np.where(fits, gains, 0.0)))
            if fits[at] and gains[at] > best:
                best, step = float(gains[at]), (item, at)
        if step is None:
            return options
        item, at = step
        left -= int(costs[item][at] - costs[item][options[item]])
        options[item] = at


def _exact(costs: Costs, losses: Losses, budget: int, price: float, incumbent: Sequence[int]) -> Allocation:
    """Fronts of partial choices, item by item, kept small by the bound that `price` gives."""
    relaxed = [loss + price * cost for cost, loss in zip(costs, losses, strict=True)]
    # What all items after the i-th cost at least: in loss plus priced bytes, and in bytes.
    rest = np.cumsum([0.0, *(float(value.min()) for value in reversed(relaxed))])[::-1][1:]
    bytes_left = np.cumsum([0, *(int(cost.min()) for cost in reversed(costs))])[::-1][1:]
    best = _total(losses, incumbent)
    slack = 1e-12 * max(1.0, best)
    sizes, totals = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    gap = 0.0
    for item, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        size = (sizes[:, None] + cost).reshape(-1)
        total = (totals[:, None] + loss).reshape(-1)
        bound = total + price * size + rest[item] - price * budget
        kept = np.flatnonzero((size + bytes_left[item] <= budget) & (bound <= best + slack))
        order = kept[np.lexsort((kept, total[kept], size[kept]))]
        front = order[_falling(total[order])]
        if len(front) > _FRONT:
            front, lost = _thin(front, total)
            gap += lost
        if not len(front):  # nothing beats the incumbent beyond rounding
            return _named(costs, losses, incumbent, gap)
        trail.append((front // len(cost), front % len(cost)))
        sizes, totals = size[front], total[front]
    at = int(np.lexsort((sizes, totals))[0])
    if totals[at] > best:
        return _named(costs, losses, incumbent, gap)
    options = []
    for parents, chosen in reversed(trail):
        options.append(int(chosen[at]))
        at = int(parents[at])
    return _named(costs, losses, options[::-1], gap)


def _falling(totals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a value is below all before it."""
    if not len(totals):
        return np.zeros(0, bool)
    before = np.concatenate([[np.inf], np.minimum.accumulate(totals)[:-1]])
    return totals < before


def _thin(front: NDArray[np.intp], total: NDArray[np.float64]) -> tuple[NDArray[np.intp], float]:
    """Every other one of a front (the smaller in size of each pair), and the loss that may cost."""
    values = total[front]
    kept = np.arange(0, len(front), 2)
    return front[kept], float(np.max(values[kept[: len(front) // 2]] - values[1::2]))


def _named(costs: Costs, losses: Losses, options: Sequence[int], gap: float) -> Allocation:
    return Allocation(tuple(options), int(_total(costs, options)), _total(losses, options), gap)
