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


@dataclass(frozen=True)
class DistillTrain:
    """Train the model beside its teacher, so that it gives the teacher's answers."""

    teacher: Path | None = option(  # noqa: RUF009
        None, "The teacher. Default in a recipe: the model that it loads.", metavar="MODEL", is_path=True
    )
    text: tuple[str, ...] = option(
        (), "Text to train on; repeat for several files. Default: the package's own.", metavar="FILE"
    )
    eval_text: Path | None = option(  # noqa: RUF009
        None,
        "Held-out text. Default: the package's calibration text; with --text the end of that.",
        metavar="FILE",
        is_path=True,
    )
    tokens: int = option(1_000_000, "Target tokens to train on.", metavar="N")
    context: int = option(160, "Target tokens of one window.", metavar="N")
    batch: int = option(16, "Windows of one step, over all processes.", metavar="N")
    at_once: int = option(
        0, "Windows of a process run at once; gradients of a step add up. 0: all.", metavar="N"
    )
    kl: float = option(1.0, "Weight of the divergence from the teacher's answers.", metavar="W")
    temperature: float = option(1.0, "Divides the logits of both for the divergence.", metavar="T")
    ce: float = option(0.2, "Weight of the cross-entropy with the text itself.", metavar="W")
    hidden: float = option(
        0.2, "Weight of the distance of hidden states, behind learned projections.", metavar="W"
    )
    optimizer: str = option(
        "muon", "muon (for matrices; AdamW for the rest) or adamw.", choices=("muon", "adamw")
    )
    lr: float | None = option(
        None, "Peak learning rate. Default: 0.01 for muon, 0.001 for adamw.", metavar="RATE", number=True
    )
    warmup: float = option(0.05, "Share of the steps in which the rate rises.", metavar="SHARE")
    weight_decay: float = option(0.05, "Decay of the matrices.", metavar="W")
    precision: str = option("fp32", "What the student computes in.", choices=("fp32", "bf16"))
    device: str = option("auto", "Where to train; auto takes a GPU if there is one.", choices=("auto", "cpu"))
    top_k: int = option(
        0, "Keep the teacher's K largest logits of each token on disk from their first use on.", metavar="K"
    )
    eval_every: int = option(0, "Steps between two measurements; 0 takes ten in all.", metavar="N")
    patience: int = option(
        3, "Stop after so many measurements without a smaller held-out divergence; 0 never.", metavar="N"
    )
    save_every: int = option(60, "Seconds between two checkpoints to resume from.", metavar="S")
    seed: int = option(0, "Decides the order of the text.", metavar="N")
    from_scratch: bool = option(
        False, "Draw the first weights at random, to see what the student's own are worth."
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "context", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1")
        if min(self.kl, self.ce, self.hidden) < 0 or self.kl + self.ce + self.hidden <= 0:
            raise UsageError("--kl, --ce and --hidden must not be negative, and one of them more than 0")
        if self.temperature <= 0:
            raise UsageError("--temperature must be more than 0")
        if not 0 <= self.warmup < 1:
            raise UsageError("--warmup is a share of the steps, from 0 to below 1")
        if self.top_k and self.hidden:
            raise UsageError("--top-k keeps only the teacher's answers; with it, give --hidden 0")

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.lr or (0.01 if self.optimizer == "muon" else 0.001)

    @property
    def steps(self) -> int:
        """Steps of the optimizer in all."""
        return max(1, round(self.tokens / (self.batch * self.context)))

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """The trained model.  Raises UsageError, before any work, where the two do not belong together."""
        from gpt54_convert.distill.training import train

        return train(self, checkpoint, context)

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same sizes."""
        from gpt54_convert import loaders
        from gpt54_convert.distill.belong import check

        if self.teacher is not None:
            check(self, loaders.load(self.teacher), checkpoint)
        return checkpoint
