"""The text that pruning measures on; light, because options are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Calibration:
    """Where activations are measured.  text: a file, or None for the package's own calibration text.

    tokens: how many in all.  context: of one document.
    """

    text: Path | None = None
    tokens: int = 16_384
    context: int = 256
