"""What a map means, for people: a line for every tensor, or one for all layers that are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.distill.mapping import Map
from gpt54_convert.distill.origin import Both, describe, origins
from gpt54_convert.distill.student import student

Row = Mapping[str, Any]


def rows(teacher: Checkpoint, plan: Map) -> list[dict[str, Any]]:
    """Every tensor of the student: name, role, shape, and what it is made of."""
    both, made = Both(teacher, plan), student(teacher, plan).tensors
    found = []
    for name, origin in origins(teacher, plan).items():
        match = both.new.match(name)
        sources = [both.old.match(source) for source in origin.names]
        row, column, more = describe(origin)
        found.append(
            {
                "name": name,
                "role": match.role if match else name,
                "layer": match.layer if match else None,
                "shape": list(made[name].shape),
                "from": list(origin.names),
                "from_layers": [source.layer for source in sources if source and source.layer is not None],
                "rows": row,
                "columns": column,
                "more": more,
            }
        )
    return found


def lines(found: Sequence[Row], every: bool) -> list[tuple[str, ...]]:
    """The rows as cells of a table; layers of a role that are alike share one unless `every`."""
    if every:
        return [
            (row["name"], _shape(row), _short(row["rows"]), _short(row["columns"]), _whence(row))
            for row in found
        ]
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        key = (row["role"], _shape(row), row["rows"], row["columns"], row["more"])
        alike.setdefault(key, []).append(row)
    return [
        (
            role,
            shape,
            _short(taken),
            _short(column),
            "; ".join([*_layers(members), *([more] if more else [])]),
        )
        for (role, shape, taken, column, more), members in alike.items()
    ]


def _shape(row: Row) -> str:
    return " × ".join(map(str, row["shape"]))


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:22]} …"


def _whence(row: Row) -> str:
    source = " + ".join(row["from"])
    return "; ".join(
        part for part in ("" if source == row["name"] else f"from {source}", row["more"]) if part
    )


def _layers(members: Sequence[Row]) -> list[str]:
    """`layers 0←0, 1←5+6`."""
    pairs = [
        f"{row['layer']}←{'+'.join(map(str, row['from_layers']))}"
        for row in members
        if row["layer"] is not None
    ]
    return [f"layer{'s' if len(pairs) > 1 else ''} {', '.join(pairs)}"] if pairs else []
