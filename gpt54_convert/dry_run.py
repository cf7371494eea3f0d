"""What a recipe would do: every tensor's grid, exact sizes, memory and disk, with nothing written."""

from __future__ import annotations

import os
from typing import Any

from gpt54_convert import archs, loaders
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.core.workspace import check_free, free_bytes
from gpt54_convert.method import estimated_bytes, estimated_s, resolve
from gpt54_convert.plan import ContainerPlan, plan
from gpt54_convert.recipe import Quantize, Recipe
from gpt54_convert.summary import tensor_rows, totals_of

_BASE_BYTES = 150_000_000  # interpreter, NumPy and compiled kernels, measured
_TRACING_BYTES = 550_000_000  # torch and transformers imported, a graph of 22 layers traced, measured
# Float32 chunk, the bytes it came from, codes and packed rows, and what search keeps beside them.
_COPIES = 6
# Rough rates of one core, measured on a server with AVX-512: weights searched, packed, written and hashed in
# a second; float32 operations of a forward pass; seconds of tracing an ONNX layer.
_WEIGHTS_PER_S, _OPERATIONS_PER_S, _TRACING_S = 7e7, 3e10, 2.0


def describe(recipe: Recipe, report: Report) -> dict[str, Any]:
    """The plan as one JSON-able object; refuses what a real run would refuse before reading weights."""
    checkpoint = loaders.load(recipe.source)
    teacher, operations = checkpoint.parameter_count, 0.0
    for step in recipe.passes:
        checkpoint = step.outline(checkpoint)
        operations += _operations(step, teacher, checkpoint.parameter_count)
    recipe = resolve(recipe, checkpoint, report)
    plans = plan(recipe, checkpoint, report)
    names = [planned.container for planned in plans]
    check_free(recipe.export.output, names, recipe.export.overwrite, checkpoint.source.files)
    size = sum(planned.size_bytes for planned in plans)
    free = free_bytes(recipe.export.output)
    return {
        "schema": "gpt54-convert/plan/1",
        "source": str(recipe.source),
        "recipe": recipe.to_dict(),
        "artifacts": [_artifact(planned) for planned in plans],
        "size_bytes": size,
        "peak_memory_bytes": _peak(recipe, plans),
        "estimated_s": round(_seconds(recipe, plans, operations), 1),
        "disk_free_bytes": free,
        "disk_enough": free >= size,
    }


def _artifact(planned: ContainerPlan) -> dict[str, Any]:
    rows = [
        {key: value for key, value in row.items() if key != "relative_error"} for row in tensor_rows(planned)
    ]
    return {
        "container": planned.container,
        "scheme": planned.label,
        "totals": totals_of(planned),
        "tensors": rows,
        **({"budget": planned.budget} if planned.budget else {}),
    }


def _operations(step: Any, teacher: int, student: int) -> float:
    """Float operations of a pass: two a weight and token forward, six where it trains beside its teacher."""
    tokens = getattr(step, "tokens", 0)
    if hasattr(step, "steps"):
        return float(tokens) * (2 * teacher + 6 * student)
    return 2.0 * tokens * teacher


def _seconds(recipe: Recipe, plans: list[ContainerPlan], operations: float) -> float:
    """How long it may take: right within a factor of a few, which is what a plan needs."""
    cores = recipe.export.threads or len(os.sched_getaffinity(0))
    weights = max(planned.checkpoint.parameter_count for planned in plans)
    walks = {id(solution) for planned in plans for solution in planned.solutions}
    calibrating = 0.0
    if walks and isinstance(recipe.step, Quantize):
        calibrating = len(walks) * estimated_s(recipe.step, plans[0].checkpoint, recipe.export.threads)
    tracing = sum(
        _TRACING_S * _layers(planned.checkpoint) for planned in plans if planned.container == "onnx"
    )
    written = len(plans) * weights / _WEIGHTS_PER_S / cores
    return written + operations / _OPERATIONS_PER_S / cores + calibrating + tracing


def _layers(checkpoint: Checkpoint) -> int:
    sizes = archs.by_name(checkpoint.architecture).sizes(checkpoint.config) if checkpoint.architecture else {}
    return sizes.get("layers", 0) + sizes.get("encoder_layers", 0)


def _peak(recipe: Recipe, plans: list[ContainerPlan]) -> int:
    """An estimate from above: every worker holding its largest chunk in all its forms, or calibrating."""
    workers = recipe.export.threads or len(os.sched_getaffinity(0))
    largest = max(
        4 * tensor.columns * (stop - start)
        for planned in plans
        for tensor in planned.checkpoint.tensors.values()
        for start, stop in list(tensor.chunks())[:1]
    )
    tracing = _TRACING_BYTES if any(planned.container == "onnx" for planned in plans) else 0
    writing = _BASE_BYTES + tracing + workers * _COPIES * largest
    solves = isinstance(recipe.step, Quantize) and any(planned.solutions for planned in plans)
    calibrating = estimated_bytes(recipe.step, plans[0].checkpoint) if solves else 0  # type: ignore[arg-type]
    return max(writing, calibrating)
