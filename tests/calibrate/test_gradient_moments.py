"""Moments of inputs and gradients: against plain autograd on transformers' own model."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from poison import poisoned

from gpt54_convert import data, loaders
from gpt54_convert.calibrate import gradients
from gpt54_convert.calibrate.gradients import moments, token_weights
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError
from gpt54_convert.forward import tables
from gpt54_convert.forward.batch import stack
from gpt54_convert.forward.documents import cut
from gpt54_convert.forward.torch_model import TorchReference, Weights, inputs


def plain(model, documents):
    """Per Linear: mean squares of all inputs and gradients, from one ordinary backward pass a document."""
    seen = {}

    def watch(name):
        def hook(module, args, output):
            output.retain_grad()
            seen.setdefault(name, []).append((args[0].detach(), output))

        return hook

    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_hook(watch(name))
    generator = torch.Generator().manual_seed(54)
    for document in documents:
        output = model(**inputs(stack([document], 0)))
        if hasattr(output, "logits"):
            flat = output.logits.reshape(-1, output.logits.shape[-1])
            drawn = torch.rand(len(flat), 1, generator=generator).numpy()[:, 0]
            below = flat.detach().softmax(-1).cumsum(-1).numpy()
            labels = [int(np.sum(row < u * row[-1])) for row, u in zip(below, drawn, strict=True)]
            (-flat.log_softmax(-1)[torch.arange(len(flat)), labels]).sum().backward()
        else:
            hidden = output.last_hidden_state
            (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()
    found = {}
    for name, pairs in seen.items():
        if pairs[0][1].grad is None:
            continue
        x = torch.cat([x.reshape(-1, x.shape[-1]) for x, _ in pairs]).double()
        g = torch.cat([y.grad.reshape(-1, y.shape[-1]) for _, y in pairs]).double()
        found[name] = ((g**2).sum(1) @ x**2 / (g**2).sum(), (g**2).sum(0))
    return found


@pytest.fixture
def exact(monkeypatch):
    """Products in full float32, as the oracle's are."""
    monkeypatch.setattr(gradients, "half_precision", nullcontext)


@pytest.fixture(params=["whole tables", "tables by rows"])
def tables_read(request, monkeypatch):
    """Models as they are run where they fit into memory, and where they do not."""
    if request.param == "tables by rows":
        monkeypatch.setattr(tables, "_HEAD_BYTES", 2048)
        monkeypatch.setattr(gradients, "TorchReference", partial(TorchReference, keep_bytes=0))


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "gpt54", "bert", "gemma3"])
def test_equal_plain_autograd(kind, exact, tables_read):
    model, folder = tiny.make(kind)
    checkpoint = loaders.load(folder)
    documents = cut(data.text("calibration"), checkpoint, 520, 40)[:3]
    tokens = sum(len(document.tokens) for document in documents)
    ours = moments(checkpoint, documents, Report())
    theirs = plain(model, documents)
    checked = 0
    for name, (of_inputs, of_outputs) in theirs.items():
        names = [
            n for n in (f"{name}.weight", f"bert.{name}.weight", f"transformer.{name}.weight") if n in ours
        ]
        if not names:
            assert name in ("lm_head", "pooler.dense"), name  # a tied head goes by the embedding's name
            continue
        np.testing.assert_allclose(ours[names[0]].inputs, of_inputs, rtol=2e-3, atol=1e-9)
        np.testing.assert_allclose(ours[names[0]].outputs, of_outputs / tokens, rtol=2e-3, atol=1e-9)
        checked += 1
    assert checked >= 8


@pytest.mark.slow
def test_half_of_the_weighted_error_is_the_divergence_of_a_small_change():
    """The head's own rounding, where the estimate is exact but for the second order and the labels drawn."""
    from gpt54_convert.calibrate.loss import Loss
    from gpt54_convert.core.views import from_array

    checkpoint = loaders.load(data.model_path())
    documents = cut(data.text("calibration"), checkpoint, 1500, 96)
    found = moments(checkpoint, documents, Report())
    generator = np.random.default_rng(0)
    for name in ("lm_head.weight", "decoder.block.1.layer.2.DenseReluDense.wo.weight"):
        tensor = checkpoint.tensors[name]
        weight = tensor.float_rows(0, tensor.row_count)
        noise = (0.02 * weight.std() * generator.standard_normal(weight.shape)).astype(np.float32)
        changed = checkpoint.with_tensors({**checkpoint.tensors, name: from_array(name, weight + noise)})
        estimate = 0.5 * found[name].outputs @ (noise.astype(np.float64) ** 2 @ found[name].inputs)
        with Loss(checkpoint, documents) as loss:
            measured = loss.of(changed)
        assert 0.6 < measured / estimate < 1.7, (name, measured, estimate)


def test_products_in_bfloat16_change_little_and_only_there():
    """Where the processor has no fast bfloat16 they are the same."""
    checkpoint = loaders.load(data.model_path())
    documents = [d for d in cut(data.text("calibration"), checkpoint, 1500, 96) if len(d.tokens) == 96][:4]
    rough = token_weights(checkpoint, documents, Report())
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "half_precision", nullcontext)
        exactly = token_weights(checkpoint, documents, Report())
    alike = [np.corrcoef(exactly[name].ravel(), rough[name].ravel())[0, 1] for name in exactly]
    assert np.median(alike) > 0.9  # a label that is drawn otherwise changes a token's gradients altogether


@pytest.mark.parametrize("kind", ["llama", "gpt54", "bert"])
def test_token_weights_are_squares_of_gradients(kind, exact):
    model, folder = tiny.make(kind)
    checkpoint = loaders.load(folder)
    documents = [d for d in cut(data.text("calibration"), checkpoint, 520, 40) if len(d.tokens) == 40][:3]
    found = token_weights(checkpoint, documents, Report())
    assert len(found) > 10
    of_outputs = {name: outputs for name, (_, outputs) in plain(model, documents).items()}
    for name, weights in found.items():
        assert weights.shape[0] == len(documents)
        spelled = [
            n for n in of_outputs if f"{n}.weight" in (name, f"bert.{name}", name.removeprefix("bert."))
        ]
        if spelled:  # a tied head stands under the embedding's name
            assert np.isclose(weights.sum(dtype=np.float64), float(of_outputs[spelled[0]].sum()), rtol=1e-3)


def test_gradients_that_are_not_finite_are_refused():
    _, folder = tiny.make("llama")
    checkpoint = loaders.load(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    documents = cut(data.text("calibration"), checkpoint, 520, 40)[:2]
    with pytest.raises(InputError, match=r"layers\.1\.mlp|lm_head|embed"):
        token_weights(poisoned(checkpoint, name, np.inf), documents, Report())


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        ("llama", {"num_hidden_layers": 4}),
        ("gpt2", {"n_layer": 4}),
        ("gpt54", {"num_layers": 4, "num_decoder_layers": 4}),
    ],
)
def test_of_many_layers_only_one_is_in_memory(kind, depth, monkeypatch):
    """On the way back too, where a layer that is run again must not leave weights behind."""
    checkpoint = loaders.load(tiny.make(kind, **depth)[1])
    read, seen = Weights._read, []

    class Watched(TorchReference):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, keep_bytes=0, **kwargs)
            self.weights.model = self.model

    def noted(self, name):
        stacks = [m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4]
        layers = [layer for stack in stacks for layer in stack]
        seen.append(sum(any(p.device.type != "meta" for p in layer.parameters()) for layer in layers))
        return read(self, name)

    monkeypatch.setattr(gradients, "TorchReference", Watched)
    monkeypatch.setattr(Weights, "_read", noted)
    monkeypatch.setattr("gpt54_convert.forward.torch_model._SMALL", 0)
    token_weights(checkpoint, cut(data.text("calibration"), checkpoint, 640, 64)[:2], Report())
    assert len(seen) > 40 and max(seen) <= 1
