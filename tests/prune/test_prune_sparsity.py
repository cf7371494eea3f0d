"""Zeros where and as many as the pattern says, chosen as each criterion's paper says."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from gpt54_convert import archs, loaders
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UsageError
from gpt54_convert.prune.criteria import magnitude, sparsegpt, wanda
from gpt54_convert.prune.patterns import parse
from gpt54_convert.prune.sparsity import inverse_factor
from gpt54_convert.prune.step import Prune

PATTERNS = ["0.5", "0.3", "2:4", "1:4"]


def data(rows=6, columns=160, tokens=400):
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((columns, columns)) * rng.uniform(0.1, 3, columns)
    inputs = rng.standard_normal((tokens, columns)) @ mixing * 0.1
    return rng.standard_normal((rows, columns)).astype(np.float32), inputs


def worst(worth, pattern):
    """Which weights of one row go, by a plain sort: the smallest, as the pattern counts them."""
    if ":" in pattern:
        keep, group = map(int, pattern.split(":"))
        return {
            start + i
            for start in range(0, len(worth), group)
            for i in np.argsort(worth[start : start + group])[: group - keep]
        }
    return set(np.argsort(worth)[: round(float(pattern) * len(worth))])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_magnitude_and_wanda_drop_the_smallest(pattern):
    weights, inputs = data()
    energy = np.mean(inputs**2, 0)
    for criterion, worth in (
        (magnitude, abs(weights)),
        (wanda, abs(weights) * np.linalg.norm(inputs, axis=0)),
    ):
        found = criterion.sparse(weights, energy, parse(pattern))
        for row, value, worths in zip(weights, found, worth, strict=True):
            assert set(np.flatnonzero(value == 0)) == worst(worths, pattern)
            assert np.array_equal(value[value != 0], row[value != 0])


def naive_sparsegpt(weights, inputs, pattern, block=128):
    """The paper's algorithm without its factorisation: the remaining inputs' inverse anew at every column."""
    columns = weights.shape[1]
    moments = inputs.T @ inputs
    moments += 0.01 * np.mean(np.diag(moments)) * np.eye(columns)
    inverses = [np.linalg.inv(moments[i:, i:]) for i in range(columns)]
    result = weights.astype(np.float64)
    group = int(pattern.split(":")[1]) if ":" in pattern else block
    for row in result:
        for i in range(columns):
            if i % group == 0:
                ahead = range(i, min(i + group, columns))
                gone = {
                    i + j for j in worst(np.array([row[j] ** 2 / inverses[j][0, 0] for j in ahead]), pattern)
                }
            if i in gone:
                row[i:] -= row[i] / inverses[i][0, 0] * inverses[i][0]
                row[i] = 0
    return result


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsegpt_is_the_papers_algorithm(pattern):
    weights, inputs = data(rows=3)
    factor = inverse_factor(inputs.T @ inputs)
    found = sparsegpt.sparse(weights, factor, parse(pattern))
    assert np.allclose(found, naive_sparsegpt(weights, inputs, pattern), atol=2e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_criterion_is_closer_than_the_one_before(pattern):
    """Measured where it counts, in the output: magnitude, wanda, sparsegpt."""
    weights, inputs = data(rows=40)
    statistics = {magnitude: None, wanda: np.mean(inputs**2, 0), sparsegpt: inverse_factor(inputs.T @ inputs)}
    errors = [
        np.linalg.norm(inputs @ (criterion.sparse(weights, statistic, parse(pattern)) - weights).T)
        for criterion, statistic in statistics.items()
    ]
    assert errors[0] > errors[1] > 1.1 * errors[2]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(2, 8), st.data())
def test_groups_keep_exactly_what_they_may(rows, groups, size, more):
    keep = more.draw(st.integers(1, size - 1))
    worth = np.random.default_rng(rows).uniform(size=(rows, groups * size))
    kept = parse(f"{keep}:{size}").mask(worth).reshape(rows, groups, size)
    assert (kept.sum(-1) == keep).all()


def test_inputs_that_are_always_zero_do_no_harm():
    weights, inputs = data()
    inputs[:, 7] = 0
    found = sparsegpt.sparse(weights, inverse_factor(inputs.T @ inputs), parse("0.5"))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt54"])
def test_a_model_gets_zeros_in_its_layers_matrices_alone(kind, criterion, tmp_path):
    _, folder = tiny.make(kind, dtype="bfloat16")
    before = loaders.load(folder)
    step = Prune(sparsity="2:4", criterion=criterion, tokens=700, context=64)
    after = step.apply(before, Context(Report(), tmp_path / "work", 1))
    architecture = archs.by_name(kind)
    for name, tensor in after.tensors.items():
        match = architecture.match(name)
        old, new = (t.rows(0, t.row_count) for t in (before.tensors[name], tensor))
        if (
            match.weight.role.rpartition(".")[2] in ("q", "k", "v", "qkv", "out", "gate", "up", "down")
            and not match.is_bias
        ):
            assert ((new.reshape(len(new), -1, 4) & 0x7FFF != 0).sum(-1) <= 2).all(), name
            if criterion != "sparsegpt":
                assert np.array_equal(new[new != 0], old[new != 0])
            assert np.array_equal(tensor.rows(3, 8), new[3:8])
        else:
            assert np.array_equal(old, new), name
    assert after.config["gpt54_convert"]["pruned"] == {"sparsity": "2:4", "criterion": criterion}


def test_an_interrupted_solve_goes_on_with_what_is_there(tmp_path):
    _, folder = tiny.make("llama")
    checkpoint, step = (
        loaders.load(folder),
        Prune(sparsity=0.5, criterion="sparsegpt", tokens=700, context=64),
    )
    first = step.apply(checkpoint, Context(Report(), tmp_path, 1))
    name = "model.layers.1.mlp.down_proj.weight"
    whole = first.tensors[name].rows(0, 64).copy()
    files = sorted(tmp_path.iterdir())
    kept = {path: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()
    second = step.apply(checkpoint, Context(Report(), tmp_path, 1))
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == kept
    assert np.array_equal(second.tensors[name].rows(0, 64), whole)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("half", "neither a share like 0.5"),
        ("1.0", "not between 0 and 1"),
        ("0", "not between 0 and 1"),
        ("-0.5", "not between 0 and 1"),
        ("4:2", "N must be less than M"),
        ("0:4", "N must be less than M"),
        ("2:4:8", "neither a share"),
        ("nan", "not between 0 and 1"),
    ],
)
def test_what_is_no_pattern_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        Prune(sparsity=text)


def test_rows_that_do_not_divide_are_refused_before_anything_is_measured(tmp_path):
    _, folder = tiny.make("llama", intermediate_size=98)
    step = Prune(sparsity="2:4", criterion="wanda", text=tmp_path / "there is no such file")
    with pytest.raises(UsageError, match="rows of 98 weights do not divide into groups of 4"):
        step.apply(loaders.load(folder), Context(Report(), tmp_path, 1))
