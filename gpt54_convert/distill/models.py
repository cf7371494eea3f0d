"""A checkpoint as a trainable model of transformers, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpt54_convert import archs
from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import OutputError
from gpt54_convert.formats import safetensors
from gpt54_convert.forward.torch_model import Weights, auto_class, build, model_config

Parameters = dict[str, torch.nn.Parameter]


def trainable(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> tuple[Any, Parameters]:
    """transformers' model with real parameters, and these by the names of the checkpoint.

    What the checkpoint stores once (a tied head) is one parameter.  Dropout is off: a student that is short
    of what its teacher knows needs none, and a training without it can be resumed exactly.
    Raises InputError where the checkpoint lacks a tensor.
    """
    model = build(checkpoint)
    weights = Weights(checkpoint, model, dtype, keep_bytes=0)
    found: Parameters = {}
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            source = weights.source(f"{prefix}.{name}" if prefix else name)
            if source not in found:
                found[source] = torch.nn.Parameter(weights[source].clone())
            module._parameters[name] = found[source]
    return model.eval(), found


def drawn_anew(checkpoint: Checkpoint, model: Any, parameters: Parameters, seed: int) -> None:
    """Give a model the first weights that transformers draws for it; the same seed gives the same ones.

    transformers draws a T5's tables with a deviation of 1, from which an untied head does not train well;
    they get 0.5, and the head 0.5 / √width, with which the embedded model was trained.
    """
    config, (auto, extra) = model_config(checkpoint), auto_class(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = auto.from_config(config, **extra)
        own = trainable_names(checkpoint, fresh)
        with torch.no_grad():
            for name, parameter in parameters.items():
                value: torch.Tensor = own[name]
                if checkpoint.architecture == "gpt54" and name in ("shared.weight", "lm_head.weight"):
                    scale = 1.0 if name == "shared.weight" else parameter.shape[1] ** -0.5
                    value = 0.5 * scale * torch.randn(parameter.shape)
                parameter.copy_(value)


def trainable_names(checkpoint: Checkpoint, model: Any) -> Parameters:
    """A model's own parameters by the names of the checkpoint."""
    weights = Weights(checkpoint, model, torch.float32, keep_bytes=0)
    return {weights.source(name): each for name, each in model.named_parameters(remove_duplicate=False)}


def with_weights(checkpoint: Checkpoint, values: dict[str, torch.Tensor], path: Path) -> Checkpoint:
    """The checkpoint with new values (as the model holds them), spilled to `path`, in its own float types."""
    try:
        save_file({name: value.detach().cpu().float().contiguous() for name, value in values.items()}, path)
    except SafetensorError as error:
        raise OutputError(f"{path}: cannot be written ({error}); free some room") from error
    spilled = safetensors.read(path)
    architecture = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None

    def stored(name: str, old: LazyTensor) -> LazyTensor:
        if name not in spilled:
            return old
        new, match = spilled[name], architecture.match(name) if architecture else None
        if match is not None and match.is_turned:
            new = views.transposed(new)
        return views.cast(new, old.dtype if old.grid is None else "float32")

    return checkpoint.with_tensors({name: stored(name, old) for name, old in checkpoint.tensors.items()})
