"""Embeddings and heads read by rows: transformers' own numbers, never a whole table."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from gpt54_convert import loaders
from gpt54_convert.forward import tables
from gpt54_convert.forward.batch import Document, stack
from gpt54_convert.forward.torch_model import TorchReference, inputs

KINDS = ["llama", "llama-tied", "gemma3", "gpt2", "gpt54", "gpt54-tied", "bert"]


def batch(checkpoint):
    rng = np.random.default_rng(5)
    vocabulary = int(checkpoint.config["vocab_size"])
    draw = lambda: rng.integers(0, vocabulary, 9)  # noqa: E731
    both = checkpoint.config.get("is_encoder_decoder")
    return stack([Document(draw(), np.empty(0, np.int64), draw() if both else None) for _ in range(2)], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_whole_tables(kind, monkeypatch):
    monkeypatch.setattr(tables, "_HEAD_BYTES", 2048)  # many parts
    model, folder = tiny.make(kind)
    checkpoint = loaders.load(folder)
    some = batch(checkpoint)
    with TorchReference(checkpoint, keep_bytes=0) as reference:
        found = reference.logits(some)
    with torch.no_grad():
        output = model(**inputs(some))
    wanted = getattr(output, "logits", None)
    wanted = output.last_hidden_state if wanted is None else wanted
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["llama-tied", "gpt54"])
def test_no_more_than_a_few_rows_are_held(kind, monkeypatch):
    monkeypatch.setattr(tables, "_HEAD_BYTES", 2048)
    _, folder = tiny.make(kind)
    checkpoint = loaders.load(folder)
    asked = []
    vocabulary = int(checkpoint.config["vocab_size"])

    def watched(tensor):
        def read(start, stop):
            asked.append(stop - start)
            return tensor.read(start, stop)

        return tensor if tensor.row_count != vocabulary else replace(tensor, read=read)

    some = checkpoint.with_tensors({name: watched(tensor) for name, tensor in checkpoint.tensors.items()})
    with TorchReference(some, keep_bytes=0) as reference:
        reference.logits(batch(some))
    assert asked and max(asked) < vocabulary / 4
