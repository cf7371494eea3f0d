"""How far the answers of a changed model are from those of its float original, as one number."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from gpt54_convert import archs
from gpt54_convert.calibrate.distance import demand_finite, divergence, squares
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.forward.batch import Batch, Document, Floats, stack
from gpt54_convert.forward.torch_model import TorchReference

_BATCH_BYTES = 64 << 20  # of one batch's answers
_KEEP_BYTES = 1 << 30


class Loss:
    """The mean over tokens of KL(original ‖ changed) in nats; for models without logits, of the squared error
    of their hidden states, relative to the mean square of the original's.

    The original's answers wait on disk, one file a batch, so that memory is that of a batch.
    """

    def __init__(self, checkpoint: Checkpoint, documents: Sequence[Document], threads: int = 0) -> None:
        self._threads = threads
        kind = archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "decoder"
        self.has_logits = kind != "encoder"
        self.token_count = sum(len(document.tokens) for document in documents)
        self._batches = _batches(documents, checkpoint)
        self._folder = tempfile.TemporaryDirectory(prefix="gpt54-answers-")
        for index, answers in enumerate(self._answers(checkpoint)):
            demand_finite(torch.from_numpy(answers))
            self._keep(index, answers)

    @property
    def unit(self) -> str:
        """What the number is, for people."""
        return "KL, nats" if self.has_logits else "squared error of hidden states"

    def of(self, checkpoint: Checkpoint) -> float:
        """The loss of `checkpoint`, infinite where it answers with what is no number."""
        total = scale = 0.0
        for index, changed in enumerate(self._answers(checkpoint)):
            kept = np.fromfile(self._path(index), np.float32).reshape(changed.shape)
            original = torch.from_numpy(kept)
            found, size = (divergence if self.has_logits else squares)(original, torch.from_numpy(changed))
            total, scale = total + found, scale + size
        loss = total / scale if scale else 0.0
        return loss if np.isfinite(loss) else float("inf")

    def _answers(self, checkpoint: Checkpoint) -> Iterator[Floats]:
        """Answers to all tokens of each batch, [tokens, vocab] or [tokens, width]."""
        with TorchReference(checkpoint, self._threads, keep_bytes=_KEEP_BYTES) as reference:
            for batch in self._batches:
                yield reference.logits(batch)[batch.mask.astype(bool)]

    def _keep(self, index: int, answers: Floats) -> None:
        """Raises OutputError where the disk is full."""
        try:
            with open(self._path(index), "wb") as file:
                file.write(np.ascontiguousarray(answers, np.float32).data)  # np.save would not say why
        except OSError as error:
            raise as_output_error(error, Path(self._folder.name)) from error

    def _path(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.f32"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()


def _batches(documents: Sequence[Document], checkpoint: Checkpoint) -> list[Batch]:
    """Documents in batches whose answers take about `_BATCH_BYTES`."""
    width = max(int(checkpoint.config.get(key) or 0) for key in ("vocab_size", "hidden_size", "d_model"))
    longest = max(len(document.tokens) for document in documents)
    size = max(1, min(16, _BATCH_BYTES // (4 * max(1024, width) * longest)))
    return [stack(list(documents[i : i + size]), i) for i in range(0, len(documents), size)]
