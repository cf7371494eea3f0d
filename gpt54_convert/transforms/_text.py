"""The text that transforms run a model on, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from gpt54_convert.calibrate import text as texts
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.options import option
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.forward.batch import Document


@dataclass(frozen=True, kw_only=True)
class Sample(Calibration):
    """Less text than solvers need: what is sought are a few numbers a channel."""

    calibration_samples: int = option(48, "Documents to calibrate on.", metavar="N")
    calibration_length: int = option(128, "Tokens of each of them.", metavar="N")

    @property
    def tokens(self) -> int:
        """How many the model is run on, for estimates of time."""
        return self.calibration_samples * self.calibration_length


def sample(name: str, checkpoint: Checkpoint, options: Calibration) -> list[Document]:
    """The documents that the transform `--name` runs the model on.

    Raises UnsupportedError without torch, InputError and MeasureError for text that is of no use.
    """
    try:
        from gpt54_convert.forward import torch_model  # noqa: F401 - before text is cut for nothing
    except ImportError as error:
        raise UnsupportedError(
            f"--{name} runs the model, which needs torch: pip install 'gpt54-convert[torch]' ({error})"
        ) from error
    return texts.documents(texts.read(options), checkpoint, options)
