"""A step of a recipe that turns one checkpoint into another: pruning, distilling, transforming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt54_convert.core.options import to_dict
from gpt54_convert.core.report import Report

if TYPE_CHECKING:  # NumPy would make `--help` wait
    from gpt54_convert.core.checkpoint import Checkpoint


@dataclass(frozen=True)
class Context:
    """What a pass may use besides its checkpoint.

    report: who is told of progress.  workspace: a folder for what does not fit into memory; tensors of the
    checkpoint that a pass returns may read from it until the job ends.  threads: 0 is one per core.
    source: the checkpoint that the job began with: the teacher of whatever was made of it.
    """

    report: Report
    workspace: Path
    threads: int = 0
    source: Checkpoint | None = None


class Pass(Protocol):
    """A frozen dataclass; its fields, made by `core.options.option`, are options and recipe keys alike."""

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """A new checkpoint; the given one is never changed.

        Raises UsageError for options that make no sense for this model, before any work starts.
        """
        ...

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """What `apply` would declare, for a plan: its tensors have their shapes and must not be read.

        Raises what `apply` would before any work.
        """
        ...


def as_dict(step: Pass) -> dict[str, Any]:
    """A pass as data: its name and its fields."""
    return {type(step).__name__.lower(): to_dict(step)}
