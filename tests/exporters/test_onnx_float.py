"""Float ONNX of every architecture beside torch, in the situations where graphs go wrong silently.

The reference is transformers' own forward on the whole, unpadded sequence; the graph gets a padded batch
whose rows stand at different positions, in one piece without past and in pieces with it, down to one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny
import torch
from pump import export

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters import onnx as exporter
from gpt54_convert.loaders import load

LENGTHS = (9, 17, 12)
SOURCES = (7, 13, 5)
# One of each kind of graph in every run; what differs from them in its table alone is marked slow.
FAST = ("llama", "gpt2", "bert", "gpt54")
SLOW = (
    *("llama-tied", "llama-bias", "llama-llama3", "llama-yarn", "mistral", "qwen2", "qwen2-tied", "qwen3"),
    *("qwen3-tied", "gemma3", "gemma3-padded", "bert-mlm", "distilbert", "gpt54-tied"),
)
KINDS = [*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
Arrays = dict[str, np.ndarray]


class Folder:
    """The graphs of a folder in ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.graphs = {
            path.stem: onnxruntime.InferenceSession(str(path), options) for path in folder.glob("*.onnx")
        }

    def run(self, stem: str, feed: Arrays) -> Arrays:
        graph = self.graphs[stem]
        names = [entry.name for entry in graph.get_outputs()]
        return dict(zip(names, graph.run(names, feed), strict=True))

    def empty_past(self, rows: int) -> Arrays:
        return {
            entry.name: np.zeros(
                (rows, entry.shape[1], 0, entry.shape[3]),
                np.float16 if entry.type == "tensor(float16)" else np.float32,
            )
            for entry in self.graphs["model"].get_inputs()
            if entry.name.startswith("past_key_values.")
        }


def past_of(outputs: Arrays) -> Arrays:
    found = {
        k.replace("present", "past_key_values"): v for k, v in outputs.items() if k.startswith("present")
    }
    return found


def tokens(lengths: tuple[int, ...], vocabulary: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, vocabulary, length).astype(np.int64) for length in lengths]


def decode(folder: Folder, rows: list[np.ndarray], cuts: tuple[int, ...]) -> list[np.ndarray]:
    """Logits of every row's tokens; the batch is padded in front and run in pieces that end at `cuts`."""
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    past, parts, start = folder.empty_past(len(rows)), [], 0
    for stop in (*cuts, width):
        outputs = folder.run(
            "model",
            {
                "input_ids": ids[:, start:stop],
                "attention_mask": mask[:, :stop],
                "position_ids": positions[:, start:stop],
                **past,
            },
        )
        past, start = past_of(outputs), stop
        parts.append(outputs["logits"])
    logits = np.concatenate(parts, axis=1)
    return [logits[i, width - len(row) :] for i, row in enumerate(rows)]


def translate(
    folder: Folder, sources: list[np.ndarray], rows: list[np.ndarray], cuts: tuple[int, ...]
) -> list[np.ndarray]:
    """Logits of an encoder-decoder: sources padded behind, decoder tokens all of one length."""
    width = max(map(len, sources))
    ids, mask = np.zeros((2, len(sources), width), np.int64)
    for i, row in enumerate(sources):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    states = folder.run("encoder_model", {"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
    target, parts, start, past = np.stack(rows), [], 0, {}
    for stop in (*cuts, target.shape[1]):
        feed = {"encoder_attention_mask": mask, "input_ids": target[:, start:stop]}
        if past:
            outputs = folder.run("decoder_with_past_model", {**feed, **past})
        else:
            outputs = folder.run("decoder_model", {**feed, "encoder_hidden_states": states})
        past, start = past | past_of(outputs), stop
        parts.append(outputs["logits"])
    return list(np.concatenate(parts, axis=1))


def encode(folder: Folder, rows: list[np.ndarray], types: list[np.ndarray]) -> list[np.ndarray]:
    width = max(map(len, rows))
    ids, mask, kinds = np.zeros((3, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)], kinds[i, : len(row)] = row, 1, types[i]
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    known = {entry.name for entry in folder.graphs["model"].get_inputs()}
    found = folder.run("model", {name: array for name, array in feed.items() if name in known})
    states = found["last_hidden_state"]
    return [states[i, : len(row)] for i, row in enumerate(rows)]


def states(model: Any, row: np.ndarray, types: np.ndarray | None) -> Any:
    """transformers' last hidden states of one row, below any head."""
    feed = {"input_ids": torch.tensor(row)[None]}
    if types is not None:
        feed["token_type_ids"] = torch.tensor(types)[None]
    return getattr(model, "bert", model)(**feed).last_hidden_state[0]


def worst(found: list[np.ndarray], wanted: list[Any]) -> float:
    """The largest difference over the largest value."""
    scale = max(float(each.abs().max()) for each in wanted)
    return max(float(np.abs(a - b.float().numpy()).max()) for a, b in zip(found, wanted, strict=True)) / scale


def compare(model: Any, folder: Path) -> float:
    """The largest difference of any situation, relative to the largest logit (or hidden state)."""
    runtime = Folder(folder)
    vocabulary = min(200, model.config.vocab_size)
    rows = tokens(LENGTHS, vocabulary, 0)
    with torch.no_grad():
        if "encoder_model" in runtime.graphs:
            sources, targets = tokens(SOURCES, vocabulary, 1), tokens((8, 8, 8), vocabulary, 2)
            pairs = zip(sources, targets, strict=True)
            wanted = [
                model(input_ids=torch.tensor(s)[None], decoder_input_ids=torch.tensor(t)[None]).logits[0]
                for s, t in pairs
            ]
            cuts = ((), (1,), (3, 4))
            return max(worst(translate(runtime, sources, targets, each), wanted) for each in cuts)
        graph = runtime.graphs["model"]
        if graph.get_outputs()[0].name == "last_hidden_state":
            has_types = "token_type_ids" in {entry.name for entry in graph.get_inputs()}
            types = [(np.arange(len(row)) > 4 * has_types).astype(np.int64) for row in rows]
            wanted = [
                states(model, row, kinds if has_types else None)
                for row, kinds in zip(rows, types, strict=True)
            ]
            return worst(encode(runtime, rows, types), wanted)
        wanted = [model(input_ids=torch.tensor(row)[None]).logits[0] for row in rows]
        # In one piece; in halves; token by token at the end; a first piece of padding alone for two rows.
        found = [decode(runtime, rows, cuts) for cuts in ((), (9,), (10, 15, 16), (4, 5))]
        alone = [decode(runtime, [row], (len(row) - 1,))[0] for row in rows]
        return max(worst(each, wanted) for each in (*found, alone))


def written(checkpoint: Checkpoint, folder: Path) -> Path:
    unused = set(exporter.leaves_out(checkpoint))
    return export(
        exporter,
        checkpoint.with_tensors({n: t for n, t in checkpoint.tensors.items() if n not in unused}),
        folder,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch(kind: str, tmp_path: Path) -> None:
    model, source = tiny.make(kind)
    assert compare(model, written(load(source), tmp_path / "out")) < 1e-4
