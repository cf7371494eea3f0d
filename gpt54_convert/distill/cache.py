"""The teacher's largest logits on disk: those of a window are computed once and read from then on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Top:
    """Log-probabilities at the training's temperature.  values, tokens [windows, time, k]."""

    values: NDArray[np.float32]
    tokens: NDArray[np.int32]


class TopCache:
    """Rows of a file, one a window; several processes of one machine may share it.

    A row is believed once its mark is set, which happens after it was written.
    """

    def __init__(self, folder: Path, windows: int, time: int, k: int) -> None:
        shape = (windows, time, k)
        self._values: Any = _mapped(folder / "top-values.f32", np.float32, shape)
        self._tokens: Any = _mapped(folder / "top-tokens.i32", np.int32, shape)
        self._done: Any = _mapped(folder / "top-done.u8", np.uint8, (windows,))

    def has(self, rows: list[int]) -> bool:
        """Whether all of these windows are there."""
        return bool((self._done[rows] == 1).all())

    def get(self, rows: list[int]) -> Top:
        """What is kept of these windows."""
        return Top(np.array(self._values[rows]), np.array(self._tokens[rows]))

    def put(self, rows: list[int], top: Top) -> None:
        """Keep what the teacher said of these windows."""
        self._values[rows], self._tokens[rows] = top.values, top.tokens
        self._values.flush()
        self._tokens.flush()
        self._done[rows] = 1


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with open(path, "ab") as file:  # sparse: what was not yet seen takes no room
        file.truncate(max(size, file.seek(0, 2)))
    return np.memmap(path, dtype, "r+", shape=shape)
