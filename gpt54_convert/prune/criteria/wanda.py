"""The weights that contribute least, |weight| × norm of its input, become zero.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.prune.patterns import Pattern

DESCRIPTION = "weights times the norm of their inputs; the smallest of each row become zero"
NEEDS = "energy"


def sparse(
    rows: NDArray[np.float32], statistic: NDArray[Any] | None, pattern: Pattern
) -> NDArray[np.float32]:
    """rows [n, in]; statistic [in], the mean squares of the inputs."""
    assert statistic is not None
    return np.where(pattern.mask(np.abs(rows) * np.sqrt(statistic)), rows, np.float32(0))
