"""The smallest weights of each row become zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.prune.patterns import Pattern

DESCRIPTION = "the smallest weights become zero; needs no text and no torch"
NEEDS = "nothing"


def sparse(
    rows: NDArray[np.float32], statistic: NDArray[Any] | None, pattern: Pattern
) -> NDArray[np.float32]:
    """rows [n, in]; each row loses its own smallest."""
    return np.where(pattern.mask(np.abs(rows)), rows, np.float32(0))
