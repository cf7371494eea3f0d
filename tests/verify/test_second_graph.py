"""What an artifact's second graph may differ by: rounding of inputs, as far as the first graph differs."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpt54_convert.forward.batch import Document
from gpt54_convert.verify import second
from gpt54_convert.verify.verdict import FAIL, PASS

TOKENS = np.arange(40)
EXACT = np.random.default_rng(0).normal(0, 2, (1, 40, 50)).astype(np.float32)


def noisy(seed, size):
    return EXACT + np.random.default_rng(seed).normal(0, size, EXACT.shape).astype(np.float32)


def model(logits):
    return SimpleNamespace(logits=lambda batch: logits)


def check(exactly, rounded, first=None):
    """The verdict on a second graph that answers so; the first one is exact but for rounding of 0.1."""
    module = SimpleNamespace(
        second=lambda path: path / "second.onnx",
        open_exact=lambda path, source, threads: nullcontext(model(EXACT)),
        open_second=lambda file, threads, exact: nullcontext(model(exactly if exact else rounded)),
    )
    found = second.of(module, Path("folder"), None, 1)
    found.listen([Document(TOKENS, TOKENS, None)], model(noisy(1, 0.1) if first is None else first))
    return found.check()


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


def test_a_graph_that_cannot_be_run_fails():
    def refuse(*_):
        raise RuntimeError("no such operator")

    module = SimpleNamespace(second=lambda path: path / "second.onnx", open_exact=refuse, open_second=refuse)
    found = second.of(module, Path("folder"), None, 1)
    found.listen([Document(TOKENS, TOKENS, None)], model(EXACT))
    failed = found.check()
    assert (failed.outcome, failed.detail) == (FAIL, "no such operator")


def test_containers_without_one_are_left_alone():
    assert second.of(SimpleNamespace(), Path("folder"), None, 1) is None
    assert second.of(SimpleNamespace(second=lambda path: None), Path("folder"), None, 1) is None
