"""The teacher's largest logits on disk: those of a window are computed once and read from then on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Top:
    """Log-probabilities at the training's temperature.  values, tokens [windows, time, k]."""

    values: NDArray[np.float32]
    tokens: NDArray[np.int32]


class TopCache:
    """Rows of a file, one a window; several processes of one machine may share it.

    A row is believed once its mark is set, which happens after it was written.  The file is sparse: what was
    not yet seen takes no room.
    """

    def __init__(self, folder: Path, windows: int, time: int, k: int) -> None:
        self._shape, self._windows = (time, k), windows
        self._row = 8 * time * k  # bytes: float32 values, then int32 tokens
        self._data = os.open(folder / "teacher-top.rows", os.O_RDWR | os.O_CREAT, 0o644)
        self._marks = os.open(folder / "teacher-top.done", os.O_RDWR | os.O_CREAT, 0o644)

    def __del__(self) -> None:
        for name in ("_data", "_marks"):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def has(self, rows: list[int]) -> bool:
        """Whether all of these windows are there."""
        return all(os.pread(self._marks, 1, row) == b"\1" for row in rows)

    def get(self, rows: list[int]) -> Top:
        """What is kept of these windows."""
        both = [np.frombuffer(os.pread(self._data, self._row, row * self._row), "<u4") for row in rows]
        stacked = np.stack(both).reshape(len(rows), 2, *self._shape)
        return Top(stacked[:, 0].view(np.float32), stacked[:, 1].astype(np.int32))

    def put(self, rows: list[int], top: Top) -> None:
        """Keep what the teacher said of these windows.  Raises OSError where the disk is full."""
        for row, values, tokens in zip(rows, top.values, top.tokens, strict=True):
            content = values.astype("<f4").tobytes() + tokens.astype("<i4").tobytes()
            if os.pwrite(self._data, content, row * self._row) != len(content):
                raise OSError(28, os.strerror(28))
        os.fdatasync(self._data)
        for row in rows:
            os.pwrite(self._marks, b"\1", row)
