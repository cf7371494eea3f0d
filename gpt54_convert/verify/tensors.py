"""Weights of an artifact against those of its source, tensor by tensor.

What may be expected of a tensor follows from its grid: plain rounding of the same weights onto it.  A group
whose error is far beyond that is no rounding, whatever the solver; a whole tensor neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.quantize.assign import place
from gpt54_convert.quantize.encode import solver
from gpt54_convert.quantize.grids import FLOAT, Grid, grid
from gpt54_convert.verify.artifact import bits_of
from gpt54_convert.verify.verdict import FAIL, PASS, Check

# A group's squared error may be this many times that of plain rounding, plus once the tensor's average:
# solvers trade groups against each other, but none doubles the error of one.
GROUP_LIMIT = 4.8
# The same where codes were chosen by a layer's outputs: weights move to make up for what was lost before.
# Measured: up to 0.39 of a matrix at 4 bits, for gptq on 1,500 tokens.
CALIBRATED_LIMIT, CALIBRATED_ERROR = 4.0, 0.6
TENSOR_LIMIT = 1.5  # of the tensor's root-mean-square error
_EPSILON = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-8, "float64": 2.0**-22}
_FLOAT16_STEP = 2.0**-24  # its smallest number
_SHOWN = 5
_SUSPECTS = 1 << 20  # groups remembered of one tensor: 16 MB
_LEAST = 1 << 16  # weights of a tensor that are looked at however small the budget
_PLACES = 4  # where a sample's rows lie: at the start, at the end, and evenly between


@dataclass
class _Sums:
    """What is collected over the chunks of one tensor.

    groups, rounded: how many groups there are, and the sum of their squared errors under plain rounding.
    suspects [2, n]: of the groups that may be wrong, the squared error and how far it is beyond its limit.
    """

    error: float = 0.0
    energy: float = 0.0
    expected: float = 0.0
    groups: int = 0
    rounded: float = 0.0
    suspects: list[NDArray[np.float64]] = field(default_factory=list)
    beyond: int = 0
    finite: bool = True


def check(
    source: Checkpoint,
    artifact: Checkpoint,
    report: Report,
    budget: int | None = None,
    calibrated: bool = False,
) -> tuple[list[Check], list[dict[str, Any]]]:
    """Checks, and one row a tensor: its error, what was expected, and what is wrong with it.

    calibrated: the codes were chosen by what layers answer, at a price in the weights: they may be further
        off as a whole, and single groups by as much as it took.
    budget: weights to look at in all; rows spread over every larger tensor stand for the rest of it.
    """
    rows: list[dict[str, Any]] = []
    names = [name for name in source.tensors if _matters(source, name) or name in artifact.tensors]
    names += [name for name in artifact.tensors if name not in source.tensors]
    with report.progress(
        "comparing tensors", sum(4 * source.tensors[n].size for n in names if n in source.tensors)
    ) as advance:
        share = max(_LEAST, budget // max(1, len(names))) if budget else None
        for name in names:
            rows.append(_row(source, artifact, name, share, calibrated))
            if name in source.tensors:
                advance(4 * source.tensors[name].size)
    rows.sort(key=lambda row: _order(source, row["name"]))
    return _checks(rows), rows


def _checks(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    bad = [row for row in rows if row["problem"]]
    if not bad:
        sampled = sum("sampled" in row for row in rows)
        told = f" ({sampled} of them judged by a sample of their rows)" if sampled else ""
        detail = f"{len(rows)} tensors are as close as their grids allow{told}"
        return [Check("tensors", "all", PASS, detail)]
    first = bad[0]
    where = f"first {_where(first)}, tensor {first['name']}"
    checks = [Check("tensors", "first", FAIL, f"{len(bad)} of {len(rows)} tensors are wrong, {where}")]
    checks += [
        Check("tensors", row["name"], FAIL, f"{_where(row)}: {row['problem']}", row.get("relative_error"))
        for row in bad[:_SHOWN]
    ]
    return checks


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['role']} of layer {row['layer']}" if row["layer"] is not None else f"{row['role']}"


def _matters(source: Checkpoint, name: str) -> bool:
    """False for tensors no container but the source's needs to keep (a pooler, buffers)."""
    match = archs.by_name(source.architecture).match(name) if source.architecture else None
    return source.architecture is None or (match is not None and match.weight.role != "pooler")


def _order(source: Checkpoint, name: str) -> tuple[int, int, int]:
    """In the order of the computation: embeddings, encoder, decoder, what comes after the layers."""
    if source.architecture is None:
        return (0, 0, list(source.tensors).index(name) if name in source.tensors else 0)
    architecture = archs.by_name(source.architecture)
    match = architecture.match(name)
    if match is None:
        return (9, 0, 0)
    position = architecture.weights.index(match.weight)
    late = match.weight.role in ("head", "norm.final", "enc.norm.final")
    stage = (1 if match.weight.role.startswith("enc.") else 3) + (late or 0)
    if match.layer is None and not late:
        stage = 0
    return (stage, match.layer or 0, position)


def _row(
    source: Checkpoint, artifact: Checkpoint, name: str, share: int | None, calibrated: bool
) -> dict[str, Any]:
    architecture = archs.by_name(source.architecture) if source.architecture else None
    match = architecture.match(name) if architecture else None
    holder = source if name in source.tensors else artifact
    row: dict[str, Any] = {
        "name": name,
        "role": match.role if match else place(holder, name).role,
        "layer": match.layer if match else None,
        "problem": "",
    }
    ours, theirs = source.tensors.get(name), artifact.tensors.get(name)
    if ours is None or theirs is None:
        row["problem"] = "is missing" if theirs is None else "is not in the model it was made from"
        return row
    row["grid"] = theirs.stored_as
    if ours.shape != theirs.shape:
        cut = ours.shape[1:] == theirs.shape[1:] and row["role"] in ("embed", "head")
        if not cut or abs(ours.row_count - theirs.row_count) > max(1024, ours.row_count // 16):
            row["problem"] = f"has shape {list(theirs.shape)}, the model's has {list(ours.shape)}"
            return row
    align, count = math.lcm(ours.row_align, theirs.row_align), min(ours.row_count, theirs.row_count)
    parts = list(_parts(replace(theirs, row_align=align), count, share))
    if sum(stop - start for start, stop in parts) < count:
        row["sampled"] = True
    sums = _compare(ours, theirs, parts)
    row["relative_error"] = _root(sums.error, sums.energy)
    row["expected_error"] = _root(sums.expected, sums.energy)
    row["problem"] = _problem(sums, row, CALIBRATED_LIMIT if calibrated else TENSOR_LIMIT)
    return row


def _root(error: float, energy: float) -> float:
    return math.sqrt(error / energy) if energy > 0 else math.sqrt(error)


def _problem(sums: _Sums, row: Mapping[str, Any], limit: float) -> str:
    if not sums.finite:
        return "holds values that are not finite (NaN or infinity)"
    if sums.beyond:
        return f"{sums.beyond} values differ by more than rounding to {row['grid']}"
    free = 0.0 if limit < CALIBRATED_LIMIT else CALIBRATED_ERROR
    if row["relative_error"] > max(limit * row["expected_error"] + 1e-6, free):
        return (
            f"relative error {row['relative_error']:.4g}, where {row['grid']} should leave "
            f"{row['expected_error']:.4g}"
        )
    if sums.groups and limit < CALIBRATED_LIMIT:
        mean = sums.rounded / sums.groups
        errors, excess = np.concatenate([np.empty((2, 0)), *sums.suspects], axis=1)
        wrong = errors[excess > mean + 1e-20]
        if len(wrong):
            worst = float(np.sqrt(wrong.max() / max(mean, 1e-30)))
            least = "at least " if len(wrong) >= _SUSPECTS else ""
            return (
                f"{least}{len(wrong)} of {sums.groups} groups are off by more than rounding, the worst "
                f"{worst:.3g} times"
            )
    return ""


def _parts(tensor: LazyTensor, rows: int, share: int | None) -> Iterator[tuple[int, int]]:
    """The ranges of rows to compare: all of the first `rows`, or about `share` weights of them."""
    if share is None or tensor.columns * rows <= share:
        for start, end in tensor.chunks():
            if start < rows:
                yield start, min(end, rows)
        return
    count = max(1, share // _PLACES // tensor.columns)
    count = -(-count // tensor.row_align) * tensor.row_align
    last = 0
    for part in range(_PLACES):
        start = (rows - count) * part // (_PLACES - 1)
        start = max(last, start - start % tensor.row_align)
        last = min(rows, start + count)
        if start < last:
            yield start, last


def _compare(ours: LazyTensor, theirs: LazyTensor, parts: Sequence[tuple[int, int]]) -> _Sums:
    target = _grid(theirs)
    sums = _Sums()
    for start, stop in parts:
        weight, found = ours.float_rows(start, stop), theirs.float_rows(start, stop)
        if not np.isfinite(found).all():
            sums.finite = False
            return sums
        error = (found.astype(np.float64) - weight) ** 2
        sums.error += float(error.sum())
        sums.energy += float((weight.astype(np.float64) ** 2).sum())
        if target is not None:
            _by_group(sums, weight, error, target)
        else:
            _by_value(sums, weight, error, theirs)
    return sums


def _grid(tensor: LazyTensor) -> Grid | None:
    """The grid that its codes stand on; None for floats and for types that we have no solver for."""
    try:
        found = grid(tensor.grid) if tensor.grid else None
    except UsageError:
        return None
    return None if found is None or found.kind == FLOAT else found


def _by_group(sums: _Sums, weight: NDArray[np.float32], error: NDArray[np.float64], target: Grid) -> None:
    rounded = (solver("rtn")(weight, target, None).dequantize().astype(np.float64) - weight) ** 2
    sums.expected += float(rounded.sum())
    group = target.group or weight.shape[1]
    errors = error.reshape(-1, group).mean(axis=1)
    expected = rounded.reshape(-1, group).mean(axis=1)
    sums.groups += len(expected)
    sums.rounded += float(expected.sum())
    excess = errors - GROUP_LIMIT * expected
    suspect = excess > 0  # whether they are wrong depends on the tensor's average, known at its end
    if sum(part.shape[1] for part in sums.suspects) < _SUSPECTS:
        sums.suspects.append(np.stack([errors[suspect], excess[suspect]]))


def _by_value(
    sums: _Sums, weight: NDArray[np.float32], error: NDArray[np.float64], theirs: LazyTensor
) -> None:
    bits = bits_of(theirs)
    if bits < 15:  # codes of a kind that we cannot make: only their number of bits says what to expect
        sums.expected += float((weight.astype(np.float64) ** 2).sum()) * min(0.5, 4 * 2.0**-bits) ** 2
        return
    epsilon = _EPSILON.get(theirs.stored_as.lower(), _EPSILON.get(theirs.dtype, 2.0**-8))
    if theirs.grid is None and bits < 31:
        epsilon = max(epsilon, 2.0**-10)
    # Norms that are stored with 1 added lose what 1 + w cannot hold; everything else is exact to one step.
    allowed = epsilon * (np.abs(weight.astype(np.float64)) + 2.0**-22) + _FLOAT16_STEP * 4
    over = error > allowed**2
    sums.beyond += int(over.sum())
    sums.expected += float((np.minimum(error, allowed**2)).sum())


def by_layer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Relative error by layer and stack, for the plot: the root mean square over the layer's tensors."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["layer"] is not None and row.get("relative_error") is not None and row.get("expected_error"):
            stack = "encoder" if row["role"].startswith("enc.") else "layer"
            found.setdefault((stack, row["layer"]), []).append(row["relative_error"])
    return [
        {
            "stack": stack,
            "layer": layer,
            "relative_error": math.sqrt(sum(e * e for e in errors) / len(errors)),
        }
        for (stack, layer), errors in sorted(found.items())
    ]
