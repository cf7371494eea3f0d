"""Rows of what an artifact holds, and tables of them folded to what people read: one line a role and grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt54_convert.core.dtypes import STORAGE, itemsize
from gpt54_convert.plan import ContainerPlan
from gpt54_convert.quantize.grids import grid


@dataclass(frozen=True)
class Group:
    """All tensors of one role on one grid; sizes in bytes, the error over all their weights together."""

    role: str
    grid: str
    count: int
    weights: int
    bits_per_weight: float
    before_bytes: int
    after_bytes: int
    relative_error: float
    sensitivity: float | None  # the estimated loss, where a budget chose the grids


def groups(tensors: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Rows of a manifest folded by role and grid, in order of appearance."""
    folded: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in tensors:
        family = row["role"].split(".", 1)[0] if "norm" in row["role"] else row["role"]
        role = "norms and biases" if "norm" in row["role"] or row["role"].endswith(".bias") else family
        folded.setdefault((role, row["grid"]), []).append(row)
    return [_group(role, name, rows) for (role, name), rows in folded.items()]


def _group(role: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    sizes = [math.prod(row["shape"]) for row in rows]
    after = sum(stored_bytes(row["shape"], name) for row in rows)
    # All weights of a role have like magnitudes, so the mean of squares weighs tensors by their size.
    error = math.sqrt(
        sum(size * row["relative_error"] ** 2 for size, row in zip(sizes, rows, strict=True))
        / max(1, sum(sizes))
    )
    return Group(
        role,
        name,
        len(rows),
        sum(sizes),
        8 * after / max(1, sum(sizes)),
        sum(row["source_bytes"] for row in rows),
        after,
        error,
        sum(row["sensitivity"] for row in rows) if all("sensitivity" in row for row in rows) else None,
    )


def stored_bytes(shape: Sequence[int], name: str) -> int:
    """Bytes of a tensor of that shape on that grid or in that dtype."""
    if name in STORAGE:
        return math.prod(shape) * itemsize(name)
    return int(math.prod(shape[:1])) * grid(name).row_bytes(math.prod(shape[1:]))


def reasons(tensors: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Why tensors left their scheme: reason -> their names."""
    found: dict[str, list[str]] = {}
    for row in tensors:
        if row.get("reason"):
            found.setdefault(row["reason"], []).append(row["name"])
    return found


def tensor_rows(planned: ContainerPlan) -> list[dict[str, Any]]:
    """Name, role, shape, grid, bits per weight and relative error of every tensor."""
    rows = []
    for name, tensor in planned.checkpoint.tensors.items():
        found = planned.assignments[name]
        row: dict[str, Any] = {
            "name": name,
            "role": found.role,
            "shape": list(tensor.shape),
            "grid": found.grid.name,
            "bits_per_weight": round(found.grid.bpw(tensor.columns), 4),
            "source_bytes": planned.source_bytes[name],
            "relative_error": float(f"{planned.tallies[name].relative:.6g}"),
        }
        if found.reason:
            row["reason"] = found.reason
        if name in planned.losses:
            row["sensitivity"] = float(f"{planned.losses[name]:.5g}")
        rows.append(row)
    return rows


def totals_of(planned: ContainerPlan) -> dict[str, Any]:
    """Parameters, bytes and bits per weight of one artifact (its weights' files; the card comes on top)."""
    size, count = planned.size_bytes, planned.checkpoint.parameter_count
    return {"parameters": count, "size_bytes": size, "bits_per_weight": round(8 * size / max(1, count), 4)}
