"""Where error arises: conversion, quantization or the runtime; and behind which layer.

Four models answer the same tokens: the source; the source's matrices with all else from the artifact
(conversion); the artifact's own weights, dequantized, in torch (quantization); the artifact in its runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UsageError
from gpt54_convert.forward.batch import Batch, Floats
from gpt54_convert.quantize.encode import on_grid, solver
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import FLOAT, grid
from gpt54_convert.verify import runners
from gpt54_convert.verify.artifact import bits_of
from gpt54_convert.verify.options import VerifyOptions
from gpt54_convert.verify.runner import Runner
from gpt54_convert.verify.tally import Tally

_KEEP_BYTES = 1 << 30  # of weights, over all models together
# The error behind a layer may be this many times that of plain rounding before the layer is named.
_CURVE = 4.0
_TINY = 1e-5  # relative squared error that casting to 16 bits may leave


class Lineup:
    """The torch models that take part, each made when first asked for."""

    def __init__(
        self,
        source: Checkpoint,
        artifact: Checkpoint | None,
        grids: Mapping[str, str],
        options: VerifyOptions,
    ) -> None:
        self._source, self._artifact, self._grids = source, artifact, grids
        self._threads = options.threads
        self._keep = _KEEP_BYTES // (5 if options.level == "all" else 3)
        self._made: dict[str, Any] = {}

    @property
    def can_split(self) -> bool:
        """True where the artifact's own weights can be read and run in torch."""
        return self._artifact is not None and self._artifact.architecture == self._source.architecture

    @property
    def has_grids(self) -> bool:
        """True where plain rounding onto the artifact's grids can be measured."""
        return bool(self._grids)

    @property
    def layer_names(self) -> list[str]:
        """What each hidden state of the reference stands behind."""
        return layer_names(self._source)

    def reference(self) -> Any:
        """The source in float32."""
        return self._model("reference", lambda: self._source)

    def exact(self) -> Any:
        """The source in float64."""
        import torch

        return self._model("exact", lambda: self._source, dtype=torch.float64)

    def rounded(self) -> Any:
        """The source rounded plainly onto the artifact's grids."""
        return self._model("rounded", lambda: rounded(self._source, self._grids))

    def converted(self) -> Any:
        """The artifact with the source's own matrices wherever it holds codes."""
        return self._model("converted", self._hybrid)

    def dequantized(self) -> Any:
        """The artifact's own weights."""
        return self._model("dequantized", lambda: self._artifact)

    def stored(self) -> Any:
        """The artifact's weights, or where they cannot be read, the source on the same grids."""
        return self.dequantized() if self.can_split else self.rounded()

    def stored_int8(self) -> Any:
        """The same, the inputs of its quantized layers rounded to 8 bits."""
        groups = {name: 256 if found.endswith(("_k", "_xs")) else 32 for name, found in self._grids.items()}
        make = (lambda: self._artifact) if self.can_split else (lambda: rounded(self._source, self._grids))
        return self._model("int8", make, int8_inputs=groups)

    def drop(self, name: str) -> None:
        """Forget a model and the weights it keeps."""
        self._made.pop(name, None)

    def _model(self, name: str, make: Callable[[], Checkpoint | None], **extra: Any) -> Any:
        if name not in self._made:
            module = runners.load(runners.REFERENCE)
            self._made[name] = module.TorchReference(make(), self._threads, keep_bytes=self._keep, **extra)
        return self._made[name]

    def _hybrid(self) -> Checkpoint | None:
        if self._artifact is None:
            return None
        merged = dict(self._artifact.tensors)
        for name, tensor in self._artifact.tensors.items():
            exact = self._source.tensors.get(name)
            # An embedding may have been padded or cut on the way; the source's rows would not fit then.
            if exact is not None and exact.shape == tensor.shape and _coded(tensor):
                merged[name] = exact
        return self._artifact.with_tensors(merged)


def _coded(tensor: LazyTensor) -> bool:
    return bits_of(tensor) < 15


def rounded(source: Checkpoint, grids: Mapping[str, str]) -> Checkpoint:
    """A checkpoint whose tensors are rounded plainly onto `grids` as they are read."""

    def view(name: str, tensor: LazyTensor) -> LazyTensor:
        try:
            target = grid(grids[name]) if name in grids else None
        except UsageError:  # a type that we have no solver for
            target = None
        if target is None or target.kind == FLOAT:
            return tensor
        return on_grid(tensor, target, solver("rtn"), ErrorTally())

    return source.with_tensors({name: view(name, tensor) for name, tensor in source.tensors.items()})


def split(
    batches: list[Batch], lineup: Lineup, runner: Runner, kind: str, advance: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of every stage, and the error behind each layer beside that of plain rounding."""
    steps = {name: Tally(kind) for name in ("conversion", "quantization", "runtime", "total")}
    curves: dict[str, list[list[float]]] = {"artifact": [], "rounding": []}
    for batch in batches:
        reference, states = lineup.reference().forward(batch, layers=True)
        converted = lineup.converted().logits(batch)
        dequantized, its_states = lineup.dequantized().forward(batch, layers=True)
        expected = lineup.rounded().forward(batch, layers=True)[1]
        answers = runner.logits(batch)
        steps["conversion"].add(batch, reference, converted)
        steps["quantization"].add(batch, converted, dequantized)
        steps["runtime"].add(batch, dequantized, answers)
        steps["total"].add(batch, reference, answers)
        curves["artifact"].append(_errors(states, its_states, batch))
        curves["rounding"].append(_errors(states, expected, batch))
        advance(1)
    return _figures(steps), _curves(curves, lineup.layer_names)


def _figures(steps: dict[str, Tally]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, tally in steps.items():
        if tally.finite and tally.reference_finite:
            measured = tally.figures()
            wanted = ("kl_mean_nats", "top1_agreement", "logits_nmse", "hidden_nmse", "cosine_mean")
            figures[name] = {key: measured[key].value for key in wanted if key in measured}
        else:
            figures[name] = None
    return figures


def _errors(first: list[Floats], second: list[Floats], batch: Batch) -> list[float]:
    """Squared error over squared values of each hidden state, padding left out."""
    found = []
    for ours, theirs in zip(first, second, strict=True):
        side = batch.mask if ours.shape[1] == batch.mask.shape[1] else batch.prefix_mask
        keep = np.ones(ours.shape[:2], bool) if side is None else side.astype(bool)
        a, b = ours[keep].astype(np.float64), theirs[keep].astype(np.float64)
        found.append(float(((a - b) ** 2).sum() / max(float((a**2).sum()), 1e-300)))
    return found


def _curves(curves: dict[str, list[list[float]]], names: list[str]) -> dict[str, Any]:
    rows = []
    means = {key: np.mean(values, axis=0) for key, values in curves.items()}
    for index, name in enumerate(names[: len(means["artifact"])]):
        error, expected = float(means["artifact"][index]), float(means["rounding"][index])
        beyond = not error <= _CURVE * expected + _TINY
        rows.append({"name": name, "nmse": error, "rounding_nmse": expected, "beyond": beyond})
    return {"layer_error": rows}


def layer_names(checkpoint: Checkpoint) -> list[str]:
    """What each hidden state that transformers hands out stands behind."""
    if checkpoint.architecture is None:
        return []
    architecture = archs.by_name(checkpoint.architecture)
    sizes = architecture.sizes(checkpoint.config)
    stacks = [("encoder ", sizes["encoder_layers"])] if "encoder_layers" in sizes else []
    stacks.append(("decoder " if stacks else "", sizes["layers"]))
    return [
        name
        for stack, depth in stacks
        for name in (f"{stack}embedding", *(f"{stack}layer {i}" for i in range(depth)))
    ]
