"""Lazy sums, means and products of tensors: what a student's weight is made of where it is no mere pick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.dtypes import from_float32
from gpt54_convert.core.picks import picked
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.distill.choice import NONE, Choice

Floats = NDArray[np.float32]


def _made(like: LazyTensor, shape: tuple[int, ...], rows: Callable[[int, int], Floats]) -> LazyTensor:
    """A tensor of that shape computed in float32 and stored as `like` is."""

    def read(start: int, stop: int) -> NDArray[Any]:
        return from_float32(rows(start, stop), like.dtype).reshape(stop - start, *shape[1:])

    return replace(
        like, shape=shape, read=read, grid=None, read_codes=None, storage="", storage_bytes=None, row_align=1
    )


def gathered(tensor: LazyTensor, axis: int, choice: Choice, adds: bool) -> LazyTensor:
    """The tensor with `choice` along an axis; picks cost nothing and keep their bits.

    adds: several indices are summed, not averaged: what reads a mean of channels must count each of them.
    An index that the teacher has nothing for becomes 0 in a column, the mean of all rows in a row.
    """
    if choice.is_pick:
        return picked(tensor, axis, choice.members[:, 0])
    present = choice.members != NONE
    count = np.maximum(present.sum(1, keepdims=True), 1)
    share = (present / (np.ones_like(count) if adds else count)).astype(np.float32)
    parts = [picked(tensor, axis, np.maximum(column, 0)) for column in choice.members.T]
    shape = list(tensor.shape)
    shape[axis] = len(choice)
    absent = ~present.any(1)

    def rows(start: int, stop: int) -> Floats:
        total = np.zeros((stop - start, int(np.prod(shape[1:]))), np.float32)
        for part, weight in zip(parts, share.T, strict=True):
            factor = weight[start:stop, None] if axis == 0 else weight[None, :]
            total += part.float_rows(start, stop) * factor
        if axis == 0 and absent[start:stop].any():
            total[absent[start:stop]] = mean_row()
        return total

    @lru_cache
    def mean_row() -> Floats:
        total = np.zeros(tensor.columns)
        for start, stop in tensor.chunks():
            total += tensor.float_rows(start, stop).sum(0, dtype=np.float64)
        return np.asarray(total / tensor.row_count, np.float32)

    return _made(tensor, tuple(shape), rows)


def mean(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """The mean of tensors of one shape, stored as the first is; of one tensor, itself."""
    if len(tensors) == 1:
        return tensors[0]

    def rows(start: int, stop: int) -> Floats:
        total = sum(tensor.float_rows(start, stop) for tensor in tensors)
        return np.asarray(total / np.float32(len(tensors)), np.float32)

    return _made(tensors[0], tensors[0].shape, rows)


def projected(tensor: LazyTensor, matrix: Callable[[], Floats], width: int) -> LazyTensor:
    """A matrix [out, in] times `matrix()` [in, width], asked for once rows are read."""
    return _made(
        tensor, (tensor.shape[0], width), lambda start, stop: tensor.float_rows(start, stop) @ matrix()
    )


def plus_row(tensor: LazyTensor, other: LazyTensor, row: int) -> LazyTensor:
    """Every row with one row of another tensor added (a token type that always applies)."""
    return _made(
        tensor,
        tensor.shape,
        lambda start, stop: tensor.float_rows(start, stop) + other.float_rows(row, row + 1),
    )
