"""A folder of safetensors, packed or float, as users open it: `from_pretrained`."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import compressed_tensors
import torch
import transformers

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Batch, Floats
from gpt54_convert.forward.torch_model import answer, auto_class, inputs

CONTAINERS = ("safetensors", "compressed-tensors")
NEEDS = ("torch", "transformers", "compressed_tensors")
INSTALL = "pip install 'gpt54-convert[torch]'"


class PackedRunner:
    """transformers' own loading of the folder; all of its weights are held."""

    int8_inputs = False

    def __init__(self, folder: Path, source: Checkpoint, threads: int) -> None:
        self.runtime = (
            f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}"
        )
        self._threads = threads
        auto, extra = auto_class(source)
        try:
            # compressed-tensors draws progress bars of its own.
            with contextlib.redirect_stderr(io.StringIO()):
                self.model: Any = auto.from_pretrained(
                    folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **extra
                ).eval()
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{folder}: transformers cannot load it: {error}") from error

    def logits(self, batch: Batch) -> Floats:
        if self._threads:
            torch.set_num_threads(self._threads)
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            return answer(self.model(**inputs(batch), use_cache=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.model


def open_runner(path: Path, source: Checkpoint, context: int, threads: int) -> PackedRunner:
    """The folder `path`.  Raises InputError where transformers cannot load it."""
    del context
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return PackedRunner(path, source, threads)
