"""What transforms have in common that see the model run and then move factors between its weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.forward.batch import Document
from gpt54_convert.transforms._folds import Fold, folds, outline
from gpt54_convert.transforms._same import check
from gpt54_convert.transforms._text import Sample, sample


@dataclass(frozen=True, kw_only=True)
class Scaling(Sample):
    """A pass called after its class; the model computes the same as before."""

    def apply(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        """The model with factors moved, float32 where a place for factors is.

        Raises UnsupportedError for an undescribed architecture or without torch, InputError where weights or
        activations are not finite, and what cannot be calibrated on.
        """
        name, found = type(self).__name__.lower(), folds(checkpoint)
        documents = sample(name, checkpoint, self)
        scaled, count = self.scaled(checkpoint, found, documents, context)
        check(name, checkpoint, scaled, documents[:1], context.threads)
        context.report.detail(f"{name}: factors moved at {count} of {len(found)} places of the model")
        return scaled

    @abstractmethod
    def scaled(
        self, checkpoint: Checkpoint, found: list[Fold], documents: list[Document], context: Context
    ) -> tuple[Checkpoint, int]:
        """The checkpoint changed by what `documents` show, and at how many of the places `found`."""

    def outline(self, checkpoint: Checkpoint) -> Checkpoint:
        """The types of the scaled model, with nothing measured."""
        return outline(checkpoint)
