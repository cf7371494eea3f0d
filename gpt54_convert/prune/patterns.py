"""Which weights of a row may be zero: any share of them, or so many of every few."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import UsageError


@dataclass(frozen=True)
class Pattern:
    """keep of every `group` weights along a row; `group` 0: `share` of each whole row is zero."""

    text: str
    share: float
    keep: int = 0
    group: int = 0

    def mask(self, worth: NDArray[Any]) -> NDArray[np.bool_]:
        """Which weights stay, the worthiest of each row or group: worth [rows, in] -> bool [rows, in]."""
        rows, columns = worth.shape
        parts = worth.reshape(rows, -1, self.group) if self.group else worth.reshape(rows, 1, columns)
        gone = self.group - self.keep if self.group else round(self.share * columns)
        kept = np.ones(parts.shape, bool)
        if gone:
            least = np.argpartition(parts, gone - 1, axis=-1)[..., :gone]
            np.put_along_axis(kept, least, False, axis=-1)
        return kept.reshape(rows, columns)

    def misfit(self, columns: int) -> str | None:
        """Why rows of this length cannot have the pattern; None where they can."""
        if self.group and columns % self.group:
            return f"rows of {columns} weights do not divide into groups of {self.group}"
        return None


def parse(text: str) -> Pattern:
    """`0.5` (half of each row is zero) or `2:4` (two of four stay).  Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if found:
        keep, group = int(found[1]), int(found[2])
        if 0 < keep < group <= 64:
            return Pattern(f"{keep}:{group}", 1 - keep / group, keep, group)
        raise UsageError(
            f"--sparsity {text}: of N:M weights N stay, so N must be less than M; the usual one is 2:4"
        )
    try:
        share = float(text)
    except ValueError:
        raise UsageError(f"--sparsity {text!r} is neither a share like 0.5 nor a pattern like 2:4") from None
    if not 0 < share < 1:
        raise UsageError(f"--sparsity {text} is not between 0 and 1; 0.5 makes half of the weights zero")
    return Pattern(f"{share:g}", share)
