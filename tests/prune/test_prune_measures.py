"""What is measured on text, against transformers' own modules run directly; and that choices follow it."""

import re
import sys

import numpy as np
import pytest
import tiny
import torch
from surgery import OUT, Surgery, answers
from test_prune_zero_parts import close, head_sizes, pruned, rows_of

from gpt54_convert import data, loaders
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.errors import MeasureError
from gpt54_convert.forward.documents import cut
from gpt54_convert.prune.layers import Distances, angular, even, influence, last
from gpt54_convert.prune.observe import distances, flows
from gpt54_convert.prune.options import Calibration
from gpt54_convert.prune.step import Prune

FEW = Calibration(tokens=700, context=64)
KINDS = ["llama", "gemma3", "gpt2", "bert", "gpt54"]
LAYER_MODULE = r"(model\.layers|transformer\.h|encoder\.layer|encoder\.block|decoder\.block)\.\d+$"


def context(folder):
    return Context(Report(), folder, 1)


def run_directly(folder, model, wanted, hook):
    """Call `hook(name, entering, leaving)` for modules whose name matches, for every document by itself."""
    handles = [
        module.register_forward_hook(
            lambda m, args, kwargs, out, name=name: hook(
                name, args[0] if args else kwargs["hidden_states"], out[0] if isinstance(out, tuple) else out
            ),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if re.search(wanted, name)
    ]
    documents = cut(data.text("calibration"), loaders.load(folder), FEW.tokens, FEW.context)
    with torch.no_grad():
        for document in documents:
            tokens = torch.from_numpy(document.tokens)[None]
            if document.prefix is None:
                model(input_ids=tokens)
            else:
                model(input_ids=torch.from_numpy(document.prefix)[None], decoder_input_ids=tokens)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_influence_is_that_of_each_layers_own_input_and_output(kind, tmp_path):
    model, folder = tiny.make(kind)
    found: dict[str, list] = {}

    def hook(name, entering, leaving):
        found.setdefault(name, []).append(torch.cosine_similarity(entering[0], leaving[0], dim=-1))

    run_directly(folder, model, LAYER_MODULE, hook)
    measured = distances(loaders.load(folder), context(tmp_path), FEW)
    for name, cosines in found.items():
        stack = "encoder_layers" if kind == "gpt54" and "encoder" in name else "layers"
        layer = int(name.rsplit(".", 1)[1])
        wanted = 1 - torch.cat(cosines).mean().item()
        assert measured[f"{stack}/cosine"][layer, layer + 1] == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flows_are_the_sums_of_squares_of_inputs(kind, tmp_path):
    model, folder = tiny.make(kind)
    found: dict[str, torch.Tensor] = {}

    def hook(name, entering, leaving):
        squares = entering.double().square().flatten(0, 1).sum(0)
        found[name] = found.get(name, 0) + squares

    run_directly(folder, model, OUT.split(r"\.(weight")[0] + "$", hook)
    inputs = flows(loaders.load(folder), context(tmp_path), FEW)
    assert found
    for name, wanted in found.items():
        (own,) = [value for key, value in inputs.items() if key.endswith(f"{name}.weight")]
        assert np.allclose(own, wanted.numpy(), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_influence_finds_the_layer_that_adds_nothing(kind, tmp_path):
    changes = {"gpt2": {"n_layer": 4}, "gpt54": {"num_layers": 4, "num_decoder_layers": 4}}
    _, folder = tiny.make(kind, **changes.get(kind, {"num_hidden_layers": 7 if kind == "gemma3" else 4}))
    model = Surgery(folder)
    if kind == "bert":
        model.plain_norms()
    model.zero_layer(1)
    before = model.save(tmp_path / "zeroed")
    options = {"layer_choice": "influence", "tokens": 700, "context": 64}
    after = pruned(before, tmp_path / "out", layers=6 if kind == "gemma3" else 3, **options)
    close(answers(after), answers(before))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt54", "gpt54-tied", "gemma3"])
def test_activations_find_heads_and_channels_that_are_zero(kind, tmp_path):
    _, folder = tiny.make(
        kind, **({} if "gpt54" in kind else {"num_attention_heads": 8, "num_key_value_heads": 4})
    )
    model = Surgery(folder)
    heads, size = head_sizes(model.config)
    gone = [1] if "gpt54" in kind else [0, 3, 4, 7]
    kept = model.zero_channels(np.arange(3, 51, 3))
    model.zero_inputs(OUT, lambda name: rows_of(gone, size))
    before = model.save(tmp_path / "zeroed")
    options = {"importance": "activations", "tokens": 700, "context": 64}
    after = pruned(
        before,
        tmp_path / "out",
        heads=heads - len(gone),
        width=len(kept),
        **options,
        **({} if "gpt54" in kind else {"kv_heads": 4}),
    )
    close(answers(after), answers(before))


def test_measuring_is_the_same_for_any_batching(tmp_path, monkeypatch):
    _, folder = tiny.make("gpt54")
    checkpoint = loaders.load(folder)
    together = distances(checkpoint, context(tmp_path), FEW)
    monkeypatch.setattr("gpt54_convert.prune.observe.LOGITS_BYTES", 1)
    apart = distances(checkpoint, context(tmp_path), FEW)
    assert np.allclose(together["layers/cosine"], apart["layers/cosine"], atol=1e-5)


def test_what_was_measured_is_kept_for_another_try(tmp_path, monkeypatch):
    _, folder = tiny.make("llama")
    step = Prune(layers=1, ffn=64, tokens=700, context=64)
    first = step.apply(loaders.load(folder), context(tmp_path))
    monkeypatch.setitem(sys.modules, "gpt54_convert.prune.observe", None)  # nothing can be measured any more
    second = step.apply(loaders.load(folder), context(tmp_path))
    for name, tensor in first.tensors.items():
        assert np.array_equal(
            tensor.rows(0, tensor.row_count), second.tensors[name].rows(0, tensor.row_count)
        )
    with pytest.raises(MeasureError):
        step.apply(loaders.load(folder), context(tmp_path / "other"))


def test_ways_to_choose_layers():
    step = np.array([0.9, 0.1, 0.2, 0.05, 0.8])
    cosine, angle = np.zeros((6, 6)), np.full((6, 6), 9.0)
    cosine[np.arange(5), np.arange(1, 6)] = step
    for first in range(5):
        for behind in range(first + 1, 6):
            angle[first, behind] = step[first:behind].sum()
    found = Distances(cosine, angle)
    assert influence.choose(5, 3, found)[0] == [0, 2, 4]
    assert angular.choose(5, 3, found)[0] == [0, 1, 4]
    assert last.choose(5, 3, None)[0] == [0, 1, 2]
    assert even.choose(5, 3, None)[0] == [0, 2, 4]
    assert even.choose(7, 1, None)[0] == [0]


def test_without_torch_it_says_what_to_do(monkeypatch, tmp_path):
    _, folder = tiny.make("llama")
    for name in [name for name in sys.modules if name.startswith("gpt54_convert.prune.observe")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MeasureError, match="--layer-choice even"):
        Prune(layers=1).apply(loaders.load(folder), context(tmp_path))


def test_without_a_tokenizer_it_says_so(tmp_path):
    _, folder = tiny.make("llama", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MeasureError, match=r"no tokenizer\.json"):
        Prune(ffn=64).apply(loaders.load(folder), context(tmp_path))
