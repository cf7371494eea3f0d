"""A folder of ONNX graphs in optimum's layout, in ONNX Runtime.

Documents are run as users run them: decoders padded at the front, so that rows stand at different positions,
and in two steps, so that the second half of every document goes through the graph's (or the second graph's)
past.  Which inputs a graph takes is asked of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Batch, Floats

Arrays = Mapping[str, NDArray[Any]]
MERGED = "decoder_model_merged"
_SUFFIXES = ("_q4", "_quantized", "_fp16", "_q2", "_int8", "_q4f16")
_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Graph:
    """One graph: its inputs by name, what it answers by name, and whether some of that is in float16."""

    def __init__(self, path: Path, threads: int, content: bytes | None = None) -> None:
        """Open the graph at `path`, or `content` in its place, with the files of weights that lie there.

        Raises InputError where ONNX Runtime cannot load it.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.add_session_config_entry(_FOLDER, str(path.parent))
        try:
            self._session = onnxruntime.InferenceSession(
                str(path) if content is None else content, options, ["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base
            raise InputError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self.inputs = {entry.name: entry for entry in self._session.get_inputs()}
        outputs = self._session.get_outputs()
        self._outputs = [entry.name for entry in outputs]
        self.half = any(_TYPES.get(entry.type) == np.float16 for entry in outputs)

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """The answers to `feed`, of which the graph takes what it knows."""
        known = {name: array for name, array in feed.items() if name in self.inputs}
        missing = sorted(set(self.inputs) - set(known))
        if missing:
            raise InputError(f"the graph wants inputs that are not known here: {', '.join(missing[:5])}")
        try:
            found = self._session.run(self._outputs, known)
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run the graph: {error}") from error
        return dict(zip(self._outputs, found, strict=True))

    def run_bound(self, binding: Any) -> None:
        """Run on what is bound.  Raises InputError where ONNX Runtime cannot."""
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run the graph: {error}") from error

    def empty_past(self, rows: int) -> dict[str, NDArray[Any]]:
        """No keys and values yet.  Raises InputError where the graph does not say how many there are."""
        sizes = [entry.shape for name, entry in self.inputs.items() if name.startswith("past_key_values.")]
        if any(not isinstance(shape[axis], int) for shape in sizes for axis in (1, 3)):
            raise InputError("the graph does not say how many heads of what size its past has")
        return {
            name: np.zeros((rows, entry.shape[1], 0, entry.shape[3]), _TYPES[entry.type])
            for name, entry in self.inputs.items()
            if name.startswith("past_key_values.")
        }


class OnnxModel:
    """A folder of graphs of one kind of model (`decoder`, `encoder`, `encoder-decoder`).

    int8_inputs: its kernels round what enters a quantized layer (MatMulNBits at accuracy level 4).
    half: it computes in float16.
    """

    int8_inputs = True

    def __init__(
        self, folder: Path, kind: str, threads: int, contents: Mapping[str, bytes] | None = None
    ) -> None:
        """Open the graphs in `folder`; `contents`: other bytes for the graph of that file name.

        Raises InputError where one is missing or ONNX Runtime cannot load it.
        """
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        paths = files(folder, kind)
        opened = [Graph(path, threads, (contents or {}).get(path.name)) for path in paths]
        self.half = any(graph.half for graph in opened)
        self._graphs: list[Any] = opened
        if paths[-1].name.startswith(MERGED):
            self._graphs = [opened[0], _Branch(opened[1], False), _Branch(opened[1], True)]
        self._answer = {"decoder": _decode, "encoder": _encode, "encoder-decoder": _translate}[kind]

    def logits(self, batch: Batch, in_two: bool = True) -> Floats:
        """Logits, or an encoder's hidden states; `in_two`: the second half goes through the past."""
        found: Floats = self._answer(self._graphs, batch, in_two).astype(np.float32)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._graphs.clear()


class _Branch:
    """One of the two steps in a merged decoder, called as if it were a graph of its own."""

    def __init__(self, graph: Graph, later: bool) -> None:
        self._graph, self._later = graph, later

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """The answers of that step, without those of the other."""
        rows = len(feed["input_ids"])
        switch = {"use_cache_branch": np.array([self._later])}
        found = self._graph.run({**self._graph.empty_past(rows), **feed, **switch})
        return {name: value for name, value in found.items() if value.size}


def files(folder: Path, kind: str) -> list[Path]:
    """The graphs of one kind of model in a folder.  Raises InputError where one is missing."""
    names = ["model"]
    if kind == "encoder-decoder":
        names = ["encoder_model", "decoder_model", "decoder_with_past_model"]
        if look_for(folder, MERGED):
            names = ["encoder_model", MERGED]
    return [find(folder, name) for name in names]


def find(folder: Path, stem: str) -> Path:
    """A graph as `look_for` finds it; InputError where it is not there."""
    found = look_for(folder, stem)
    if found is None:
        raise InputError(f"{folder}: has no {stem}.onnx")
    return found


def look_for(folder: Path, stem: str) -> Path | None:
    """`stem.onnx` in the folder or in the `onnx/` of transformers.js, perhaps with its suffix for a type."""
    for place in (folder, folder / "onnx"):
        for suffix in ("", *_SUFFIXES):
            path = place / f"{stem}{suffix}.onnx"
            if path.is_file():
                return path
    return None


def past_of(outputs: Arrays) -> dict[str, NDArray[Any]]:
    return {
        name.replace("present", "past_key_values", 1): array
        for name, array in outputs.items()
        if name.startswith("present")
    }


def _decode(graphs: list[Graph], batch: Batch, in_two: bool) -> NDArray[Any]:
    """Padding in front; `in_two`: the first half without past, the second with it."""
    rows, width = batch.tokens.shape
    shifts = [width - length for length in batch.lengths]
    tokens, mask = (_rolled(array, shifts) for array in (batch.tokens, batch.mask))
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    past: Arrays = graphs[0].empty_past(rows)
    parts = []
    half = max(1, width // 2) if past and in_two else width
    for start, stop in ((0, half), (half, width)):
        if start == stop:
            continue
        outputs = graphs[0].run(
            {
                "input_ids": tokens[:, start:stop],
                "attention_mask": mask[:, :stop],
                "position_ids": positions[:, start:stop],
                **past,
            }
        )
        past = past_of(outputs)
        parts.append(outputs["logits"])
    return _rolled(np.concatenate(parts, axis=1), [-shift for shift in shifts])


def _rolled(array: NDArray[Any], shifts: list[int]) -> NDArray[Any]:
    return np.stack([np.roll(row, shift, axis=0) for row, shift in zip(array, shifts, strict=True)])


def _encode(graphs: list[Graph], batch: Batch, in_two: bool) -> NDArray[Any]:
    outputs = graphs[0].run(
        {
            "input_ids": batch.tokens,
            "attention_mask": batch.mask,
            "token_type_ids": np.zeros_like(batch.tokens),
        }
    )
    return outputs.get("last_hidden_state", next(iter(outputs.values())))


def _translate(graphs: list[Graph], batch: Batch, in_two: bool) -> NDArray[Any]:
    """The encoder, the decoder on all or the first half, the decoder with past on the rest."""
    if batch.prefix is None or batch.prefix_mask is None:
        raise InputError("an encoder-decoder needs a prefix for its encoder")
    encoder, decoder, with_past = graphs
    states = encoder.run({"input_ids": batch.prefix, "attention_mask": batch.prefix_mask})
    feed = {"encoder_attention_mask": batch.prefix_mask, "encoder_hidden_states": states["last_hidden_state"]}
    width = batch.tokens.shape[1]
    half = max(1, width // 2) if in_two else width
    first = decoder.run({**feed, "input_ids": batch.tokens[:, :half]})
    if half == width:
        return first["logits"]
    second = with_past.run({**feed, **past_of(first), "input_ids": batch.tokens[:, half:]})
    return np.concatenate([first["logits"], second["logits"]], axis=1)
