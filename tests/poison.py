"""Checkpoints that are spoilt on purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint


def poisoned(source: Checkpoint, name: str, value: float) -> Checkpoint:
    """`source` with `value` in the middle row of each range of rows that is read of tensor `name`."""
    tensor = source.tensors[name]

    def read(start: int, stop: int) -> Any:
        rows = tensor.read(start, stop).copy()
        rows[rows.shape[0] // 2, ...] = value
        return rows

    return source.with_tensors({**source.tensors, name: replace(tensor, read=read)})
