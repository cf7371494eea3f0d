"""The options of `distill map`, `distill init` and `distill train`; light, because `--help` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt54_convert.core.options import option
from gpt54_convert.errors import UsageError

if TYPE_CHECKING:  # NumPy would make `--help` wait
    from gpt54_convert.core.checkpoint import Checkpoint
    from gpt54_convert.core.passes import Context

TIERS = ("mini", "nano")
READS = ("copy", "least-squares")


@dataclass(frozen=True)
class MapOptions:
    """How a map is proposed."""

    student: Path | None = option(  # noqa: RUF009 - a frozen field's description
        None, "The student's shape: a config.json, or a folder that has one.", metavar="CONFIG", is_path=True
    )
    tier: str | None = option(
        None, "Or the shape of the family's mini or nano, relative to the teacher as full.", choices=TIERS
    )
    layers: str = option(
        "even", "Which layers: even, last, influence, angular, or mean (of equal runs).", metavar="NAME"
    )
    channels: str = option(
        "weights",
        "Which heads and channels: the best by weights or activations; first; mean (of equal runs).",
        metavar="NAME",
    )
    read: str = option(
        "copy", "least-squares: what reads the width makes up for channels that are gone.", choices=READS
    )
    text: Path | None = option(  # noqa: RUF009
        None,
        "Text to measure on, where that is asked for. Default: the package's own.",
        metavar="FILE",
        is_path=True,
    )
    tokens: int = option(16384, "Tokens to measure on.", metavar="N")
    context: int = option(256, "Tokens of one document.", metavar="N")

    def __post_init__(self) -> None:
        if (self.student is None) == (self.tier is None):
            raise UsageError("give the student's shape: either --student CONFIG or --tier mini|nano")


@dataclass(frozen=True)
class DistillInit:
    """Make a student's first weights out of the model's, as a map says."""

    map: Path | None = option(None, "The map that `distill map` wrote.", metavar="FILE", is_path=True)  # noqa: RUF009

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """The student; nothing is read yet."""
        del context
        return self.outline(checkpoint)

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same."""
        from gpt54_convert.distill.mapping import read
        from gpt54_convert.distill.student import student

        if self.map is None:
            raise UsageError("distill-init needs a map: give --map FILE (`distill map` writes one)")
        return student(checkpoint, read(self.map))
