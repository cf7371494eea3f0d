"""Graphs computed exactly are held to torch; a second graph to the first, but for rounding of inputs."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpt54_convert.forward.batch import Document
from gpt54_convert.verify import metrics
from gpt54_convert.verify.graphs import Graphs
from gpt54_convert.verify.verdict import FAIL, PASS

TOKENS = np.arange(40)
EXACT = np.random.default_rng(0).normal(0, 2, (1, 40, 50)).astype(np.float32)


def noisy(seed, size):
    return EXACT + np.random.default_rng(seed).normal(0, size, EXACT.shape).astype(np.float32)


def model(logits, half=False):
    return SimpleNamespace(logits=lambda batch: logits, half=half)


class Opened(nullcontext):
    @property
    def half(self):
        return self.enter_result.half


def graphs(exactly=EXACT, rounded=EXACT, first=None, exact=None, kind=metrics.LOGITS, file="second.onnx"):
    """Graphs that answer so; the first one is exact but for rounding of 0.1."""
    module = SimpleNamespace(
        second=lambda path: path / file if file else None,
        open_exact=lambda path, source, threads: Opened(model(EXACT) if exact is None else exact),
        open_second=lambda file, threads, exact: nullcontext(model(exactly if exact else rounded)),
    )
    made = Graphs(module, Path("folder"), None, kind, 1)
    made.listen([Document(TOKENS, TOKENS, None)], model(noisy(1, 0.1) if first is None else first))
    return made


def check(exactly, rounded, first=None):
    """The verdict on such a second graph."""
    (found,) = graphs(exactly, rounded, first).check(None, 0.0)
    return found


def test_rounding_as_large_as_the_first_graphs_passes():
    passed = check(EXACT, noisy(2, 0.1))
    assert passed.outcome == PASS
    assert passed.value < 1e-9


@pytest.mark.parametrize(
    ("exactly", "rounded"),
    [
        (noisy(2, 0.1), noisy(2, 0.1)),  # a mistake no larger than rounding
        (EXACT, noisy(2, 0.4)),  # only the kernels that round are wrong
        (np.full_like(EXACT, np.nan), noisy(2, 0.1)),
        (EXACT, np.full_like(EXACT, np.inf)),
    ],
)
def test_anything_more_fails(exactly, rounded):
    failed = check(exactly, rounded)
    assert failed.outcome == FAIL
    assert failed.name == "second.onnx"


def test_where_nothing_is_rounded_nothing_more_is_allowed():
    assert check(EXACT, noisy(2, 0.01), first=EXACT).outcome == PASS
    assert check(EXACT, noisy(2, 0.1), first=EXACT).outcome == FAIL


@pytest.mark.parametrize("kind", [metrics.LOGITS, metrics.HIDDEN])
@pytest.mark.parametrize(
    ("size", "half", "noise", "outcome"),
    [
        (0.0, False, 0.0, PASS),
        (0.001, False, 0.0, FAIL),  # a KL of 5e-7, far below what rounding of inputs leaves
        (0.02, True, 0.0, PASS),
        (0.02, False, 1e-5, PASS),  # float32 itself is hardly better
        (0.2, True, 0.0, FAIL),
        (np.nan, True, 0.0, FAIL),
    ],
)
def test_the_graph_beside_torch(kind, size, half, noise, outcome):
    exact = model(noisy(3, size), half)
    (found,) = graphs(exact=exact, kind=kind, file="").check(model(EXACT), noise)
    assert (found.name, found.outcome) == ("graph", outcome)


def test_a_graph_that_cannot_be_run_fails():
    def refuse(*_):
        raise RuntimeError("no such operator")

    module = SimpleNamespace(second=lambda path: None, open_exact=refuse)
    made = Graphs(module, Path("folder"), None, metrics.LOGITS, 1)
    made.listen([Document(TOKENS, TOKENS, None)], model(EXACT))
    (failed,) = made.check(model(EXACT), 0.0)
    assert (failed.outcome, failed.detail) == (FAIL, "no such operator")
    made = graphs()
    made._module.open_second = refuse
    (failed,) = made.check(None, 0.0)
    assert (failed.name, failed.outcome, failed.detail) == ("second.onnx", FAIL, "no such operator")


def test_nothing_is_run_where_there_is_nothing_to_hold_it_to():
    assert graphs(file="").check(None, 0.0) == []
