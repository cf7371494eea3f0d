"""Weights become zero one column after another, and those to their right make up for it.

Frantar & Alistarh 2023, "SparseGPT", arXiv:2301.00774.  There a block of columns shares its zeros among all
rows; here every row has as many, so that rows can be solved apart from each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.prune.patterns import Pattern

DESCRIPTION = "as wanda looks at inputs, and moves the weights that stay to make up for those that go"
NEEDS = "factor"
_BLOCK = 128


def sparse(
    rows: NDArray[np.float32], statistic: NDArray[Any] | None, pattern: Pattern
) -> NDArray[np.float32]:
    """rows [n, in]; statistic [in, in], the upper Cholesky factor of the inverse second moments."""
    assert statistic is not None
    weights, columns = rows.astype(np.float64), rows.shape[1]
    width = pattern.group * max(1, _BLOCK // pattern.group) if pattern.group else _BLOCK
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        factor = statistic[start:stop, start:stop]
        part = weights[:, start:stop]
        errors = np.zeros_like(part)
        kept = None if pattern.group else pattern.mask((part / np.diagonal(factor)) ** 2)
        for i in range(stop - start):
            if pattern.group and i % pattern.group == 0:
                ahead = slice(i, i + pattern.group)
                chosen = pattern.mask((part[:, ahead] / np.diagonal(factor)[ahead]) ** 2)
            stays = kept[:, i] if kept is not None else chosen[:, i % pattern.group]
            errors[:, i] = np.where(stays, 0.0, part[:, i]) / factor[i, i]
            part[:, i] *= stays
            part[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        weights[:, stop:] -= errors @ statistic[start:stop, stop:]
    return weights.astype(np.float32)
