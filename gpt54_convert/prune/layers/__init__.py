"""Which layers stay; each file beside this one is a way to choose them.

A file has `DESCRIPTION`, `MEASURES` (whether it looks at hidden states) and
`choose(depth, keep, distances) -> (layers that stay, ascending; what each layer was judged by, or None)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy import float64
from numpy.typing import NDArray


@dataclass(frozen=True)
class Distances:
    """How far hidden states move, averaged over tokens; [i, j] is from before layer i to before layer j.

    cosine, angle [depth + 1, depth + 1]: 1 − cos, and the angle over π.  `depth` is behind the last layer.
    """

    cosine: NDArray[float64]
    angle: NDArray[float64]
