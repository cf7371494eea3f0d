"""What a recipe would do: every tensor's grid, exact sizes, memory and disk, with nothing written."""

from __future__ import annotations

import os
from typing import Any

from gpt54_convert import loaders
from gpt54_convert.core.report import Report
from gpt54_convert.core.workspace import check_free, free_bytes
from gpt54_convert.pipeline import tensor_rows, totals_of
from gpt54_convert.plan import ContainerPlan, plan
from gpt54_convert.recipe import Recipe

_BASE_BYTES = 150_000_000  # interpreter, NumPy and compiled kernels, measured
_TRACING_BYTES = 550_000_000  # torch and transformers imported, a graph of 22 layers traced, measured
# Float32 chunk, the bytes it came from, codes and packed rows, and what search keeps beside them.
_COPIES = 6


def describe(recipe: Recipe, report: Report) -> dict[str, Any]:
    """The plan as one JSON-able object; refuses what a real run would refuse before reading weights."""
    checkpoint = loaders.load(recipe.source)
    for step in recipe.passes:
        checkpoint = step.outline(checkpoint)
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
        "peak_memory_bytes": _peak(plans, recipe.export.threads),
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


def _peak(plans: list[ContainerPlan], threads: int) -> int:
    """An estimate from above: every worker holding its largest chunk in all its forms."""
    workers = threads or len(os.sched_getaffinity(0))
    largest = max(
        4 * tensor.columns * (stop - start)
        for planned in plans
        for tensor in planned.checkpoint.tensors.values()
        for start, stop in list(tensor.chunks())[:1]
    )
    tracing = _TRACING_BYTES if any(planned.container == "onnx" for planned in plans) else 0
    return _BASE_BYTES + tracing + workers * _COPIES * largest
