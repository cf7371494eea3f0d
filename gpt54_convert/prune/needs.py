"""What measures with torch: asked for only when something is measured, and measured once a job."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.errors import MeasureError
from gpt54_convert.prune.layers import Distances
from gpt54_convert.prune.options import Calibration

Arrays = dict[str, NDArray[Any]]


def measuring(name: str) -> Any:
    """The module `name` of this folder.  Raises MeasureError where torch or transformers is missing."""
    try:
        return import_module(f"gpt54_convert.prune.{name}")
    except ImportError as error:
        raise MeasureError(
            f"pruning by what flows through the model needs {error.name or 'torch'}: pip install "
            "'gpt54-convert[torch]', or choose without text (--layer-choice even, --importance weights, "
            "--criterion magnitude)"
        ) from error


def measured(what: str, checkpoint: Checkpoint, context: Context, calibration: Calibration) -> Arrays:
    """What `observe.WHAT` gives for a checkpoint, kept in the workspace for when the job is begun again."""
    shapes = [(name, tensor.shape) for name, tensor in checkpoint.tensors.items()]
    told = [what, str(calibration.text), calibration.tokens, calibration.context, shapes]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
    path = context.workspace / f"measured-{key}.npz"
    if path.exists():
        with np.load(path) as kept:
            return dict(kept)
    found: Arrays = getattr(measuring("observe"), what)(checkpoint, context, calibration)
    context.workspace.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        np.savez(file, **cast(Any, found))
    os.replace(partial, path)
    return found


def layer_distances(
    checkpoint: Checkpoint, context: Context, calibration: Calibration
) -> dict[str, Distances]:
    """By stack, how far the hidden states move from layer to layer."""
    found = measured("distances", checkpoint, context, calibration)
    stacks = dict.fromkeys(name.partition("/")[0] for name in found)
    return {stack: Distances(found[f"{stack}/cosine"], found[f"{stack}/angle"]) for stack in stacks}
