"""Which method chooses the codes where the user names none."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec

from gpt54_convert import archs
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.words import not_installed
from gpt54_convert.quantize.encode import needs
from gpt54_convert.recipe import Quantize, Recipe

PLAIN, CALIBRATED = "search", "gptq"
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers")  # what running a model takes
_FINE_BITS = 8  # from here on scale search loses less than runtimes' own arithmetic
# For every weight and token: a float pass there and back with its layers run twice, one that collects, one of
# the rounded model.  The rate is that of a core with AVX-512.
_OPERATIONS, _OPERATIONS_PER_S = 10.0, 8e10
# Solving a weight of a row of so many columns: every error is fed to all of them.
_SOLVING_S, _SOLVING_S_A_COLUMN = 3e-7, 4e-10
# torch, transformers, a document's activations; beside a layer's weights the moment of its widest inputs, a
# copy or factor, and what rows need.
_RUNNING_BYTES, _SQUARES = 750_000_000, 3
_WORTH_SAYING_S = 60


def resolve(recipe: Recipe, checkpoint: Checkpoint, report: Report) -> Recipe:
    """`recipe` with a method, as `_with_method` says, and without a calibration text that nothing reads."""
    recipe = _with_method(recipe, checkpoint, report)
    step = recipe.step
    if not isinstance(step, Quantize) or step.calibration is None or _reads_text(step):
        return recipe
    if not any(isinstance(each, Calibration) for each in recipe.passes):
        chosen = "the statistics of --stats" if step.stats else f"--method {step.solver}, which reads no text"
        report.note(f"--calibration {step.calibration} is not used: codes are chosen by {chosen}")
    return replace(recipe, step=replace(step, calibration=None))


def _reads_text(step: Quantize) -> bool:
    calibrated = step.stats is None and needs(step.solver) != "nothing"
    return calibrated or step.has_budget or step.activations == "static"


def _with_method(recipe: Recipe, checkpoint: Checkpoint, report: Report) -> Recipe:
    """`recipe` with a method: the user's; else gptq for few bits where the model can be run; else search.

    Few bits are those of --bits up to 6, and of budgets; a --scheme names grids that are searched.
    """
    step = recipe.step
    if not isinstance(step, Quantize) or step.method is not None:
        return recipe
    if step.fast or step.scheme is not None or (step.bits or 0) >= _FINE_BITS:
        return replace(recipe, step=replace(step, method=PLAIN))
    if reason := obstacle(checkpoint):
        report.note(
            f"codes are chosen by scale search, without running the model, for {reason}; running it would "
            "lose less at the same size (--fast is content with search)"
        )
        return replace(recipe, step=replace(step, method=PLAIN))
    if (seconds := estimated_s(step, checkpoint, recipe.export.threads)) > _WORTH_SAYING_S:
        report.note(
            f"codes are chosen by running the model on text, which takes roughly {seconds / 60:.0f} minutes "
            "here; --fast does without, and loses more"
        )
    return replace(recipe, step=replace(step, method=CALIBRATED))


def obstacle(checkpoint: Checkpoint) -> str:
    """Why this model cannot be run here, as a clause; empty where it can."""
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        return f"{not_installed(missing)} (pip install 'gpt54-convert[torch]')"
    if checkpoint.architecture is None:
        return "it is of no architecture that is described here"
    if "tokenizer.json" not in checkpoint.tokenizer:
        return "there is no tokenizer.json beside it to cut text with"
    return ""


def estimated_s(step: Quantize, checkpoint: Checkpoint, threads: int) -> float:
    """Seconds that calibrating may take: right within a factor of a few."""
    if step.method is not None and needs(step.method) == "nothing":
        return 0.0
    cores = threads or len(os.sched_getaffinity(0))
    tokens = step.calibration_samples * step.calibration_length
    running = _OPERATIONS * tokens * checkpoint.parameter_count / _OPERATIONS_PER_S
    matrices = _matrices(checkpoint)
    solving = sum(each.size * (_SOLVING_S + _SOLVING_S_A_COLUMN * each.columns) for each in matrices)
    return (running + solving) / cores


def estimated_bytes(step: Quantize, checkpoint: Checkpoint) -> int:
    """Memory that calibrating may take at its peak."""
    if step.method is not None and needs(step.method) == "nothing":
        return 0
    layers: dict[int, int] = {}
    table = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None
    for name, tensor in checkpoint.tensors.items():
        match = table.match(name) if table else None
        if match is not None and match.layer is not None:
            layers[match.layer] = layers.get(match.layer, 0) + 4 * tensor.size
    widest = max((each.columns for each in _matrices(checkpoint)), default=0)
    return _RUNNING_BYTES + max(layers.values(), default=0) + _SQUARES * 4 * widest**2


def _matrices(checkpoint: Checkpoint) -> list[LazyTensor]:
    return [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
