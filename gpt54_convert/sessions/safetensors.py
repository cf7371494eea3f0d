"""A folder of safetensors, packed or float, as transformers opens it."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch

from gpt54_convert import archs, loaders
from gpt54_convert.forward.batch import Floats
from gpt54_convert.sessions._folder import Words
from gpt54_convert.verify.artifact import Subject
from gpt54_convert.verify.runners import transformers_packed


class SafetensorsSession(Words):
    """See `sessions.Session`."""

    def __init__(self, subject: Subject, threads: int) -> None:
        super().__init__(subject.folder)
        checkpoint = loaders.load(subject.path)
        runner = transformers_packed.open_runner(subject.folder, checkpoint, self.context, threads)
        self.runtime, self._model = runner.runtime, runner.model
        self.kind = archs.by_name(checkpoint.architecture).kind if checkpoint.architecture else "decoder"
        self._past: Any = None
        self._encoded: dict[str, Any] = {}
        if threads:
            torch.set_num_threads(threads)

    def start(self, ids: list[int]) -> Floats:
        self._past, self._encoded = None, {}
        tokens = torch.tensor([ids])
        if self.kind == "encoder":
            found = self._run(input_ids=tokens).last_hidden_state[0, -1]
            return np.asarray(found.float().numpy(), np.float32)
        if self.kind == "encoder-decoder":
            with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
                states = self._model.get_encoder()(input_ids=tokens)
            self._encoded = {"encoder_outputs": states, "attention_mask": torch.ones_like(tokens)}
            return self.step(self.decoder_start)
        return self._next(input_ids=tokens)

    def step(self, token: int) -> Floats:
        name = "decoder_input_ids" if self._encoded else "input_ids"
        return self._next(**{name: torch.tensor([[token]])})

    def _next(self, **inputs: Any) -> Floats:
        output = self._run(past_key_values=self._past, use_cache=True, **self._encoded, **inputs)
        self._past = output.past_key_values
        return np.asarray(output.logits[0, -1].float().numpy(), np.float32)

    def _run(self, **inputs: Any) -> Any:
        # compressed-tensors draws progress bars of its own.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            return self._model(**inputs)

    def close(self) -> None:
        del self._model


def open_session(subject: Subject, threads: int) -> SafetensorsSession:
    """The folder of the artifact.  Raises InputError where transformers cannot load it."""
    return SafetensorsSession(subject, threads)
