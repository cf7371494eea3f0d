"""A folder of ONNX graphs in optimum's layout, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gpt54_convert.errors import InputError
from gpt54_convert.exporters._onnx_layout import IN_PLACE
from gpt54_convert.forward.batch import Floats
from gpt54_convert.forward.onnx_in_place import InPlace
from gpt54_convert.forward.onnx_model import Graph, find, past_of
from gpt54_convert.sessions._folder import Words
from gpt54_convert.verify.artifact import Subject

Arrays = dict[str, NDArray[Any]]


class OnnxSession(Words):
    """See `sessions.Session`."""

    def __init__(self, subject: Subject, threads: int) -> None:
        super().__init__(subject.folder)
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._past: Arrays = {}
        self._encoded: Arrays = {}
        self._read = 0
        try:
            self._first = Graph(find(subject.folder, "encoder_model"), threads)
            self.kind = "encoder-decoder"
        except InputError:
            self._first = _lone(subject.folder, threads)
            self.kind = "decoder" if self._first.empty_past(1) else "encoder"
        if self.kind == "encoder-decoder":
            self._decoder = Graph(find(subject.folder, "decoder_model"), threads)
            self._with_past = Graph(find(subject.folder, "decoder_with_past_model"), threads)

    def start(self, ids: list[int]) -> Floats:
        tokens = np.array([ids], np.int64)
        mask = np.ones_like(tokens)
        self._read = 0
        if isinstance(self._first, InPlace):
            self._first.restart()
        if self.kind == "decoder":
            self._past = self._first.empty_past(1)
            return self._advance(tokens)
        feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        states = self._first.run(feed)["last_hidden_state"]
        if self.kind == "encoder":
            return np.asarray(states[0, -1], np.float32)
        self._encoded = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        self._past = {}
        return self._translate(self._decoder, self.decoder_start)

    def step(self, token: int) -> Floats:
        if self.kind == "decoder":
            return self._advance(np.array([[token]], np.int64))
        return self._translate(self._with_past, token)

    def _advance(self, tokens: NDArray[np.int64]) -> Floats:
        if isinstance(self._first, InPlace):
            return np.asarray(self._first.advance(tokens)[0, -1], np.float32)
        after = self._read + tokens.shape[1]
        outputs = self._first.run(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((1, after), np.int64),
                "position_ids": np.arange(self._read, after, dtype=np.int64)[None],
                **self._past,
            }
        )
        self._past, self._read = past_of(outputs), after
        return np.asarray(outputs["logits"][0, -1], np.float32)

    def _translate(self, graph: Graph, token: int) -> Floats:
        outputs = graph.run({**self._encoded, **self._past, "input_ids": np.array([[token]], np.int64)})
        self._past = {**self._past, **past_of(outputs)}  # the encoder's keys and values stay as they are
        return np.asarray(outputs["logits"][0, -1], np.float32)

    def close(self) -> None:
        del self._first


def _lone(folder: Path, threads: int) -> Graph:
    """The graph of a model that has but one, or the one that a decoder's single row runs fastest in."""
    path = folder / IN_PLACE
    return InPlace(path, threads) if path.is_file() else Graph(find(folder, "model"), threads)


def open_session(subject: Subject, threads: int) -> OnnxSession:
    """The folder of the artifact.  Raises InputError where ONNX Runtime cannot load it."""
    return OnnxSession(subject, threads)
