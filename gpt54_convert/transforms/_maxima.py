"""The greatest absolute value in each channel of what enters a matrix, seen by hooks on the running model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Batch, Document, Floats, stack
from gpt54_convert.forward.torch_model import TorchReference, Weights

_TOGETHER = 8  # documents of a batch
Hook = Callable[[Any, tuple[Any, ...]], None]  # module, its inputs


def collect(
    checkpoint: Checkpoint, documents: list[Document], names: Iterable[str], report: Report, threads: int = 0
) -> dict[str, Floats]:
    """Tensor name -> [columns] float32, for those of `names` whose module ran.

    Documents of equal length run together, so that nothing is padded and no padding is seen.
    Raises InputError where an activation is not finite.
    """
    found: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Hook:
        return _hook(name, found)

    with TorchReference(checkpoint, threads) as reference, watched(checkpoint, reference, names, hook):
        groups = list(batches(documents))
        with report.progress("measuring activations", len(documents)) as advance:
            for batch in groups:
                reference.forward(batch)
                advance(len(batch.documents))
    result = {name: value.numpy() for name, value in found.items()}
    for name, value in result.items():
        if not np.isfinite(value).all():
            channel = int(np.argmin(np.isfinite(value)))
            raise InputError(f"tensor {name}: what enters its column {channel} is not finite on this text")
    return result


def batches(documents: list[Document]) -> Iterator[Batch]:
    """Documents in batches without padding."""
    by_length: dict[tuple[int, int], list[Document]] = {}
    for document in documents:
        prefix = 0 if document.prefix is None else len(document.prefix)
        by_length.setdefault((len(document.tokens), prefix), []).append(document)
    for group in by_length.values():
        for first in range(0, len(group), _TOGETHER):
            yield stack(group[first : first + _TOGETHER], 0)


@contextmanager
def watched(
    checkpoint: Checkpoint, reference: TorchReference, names: Iterable[str], hook: Callable[[str], Hook]
) -> Iterator[None]:
    """`hook(name)` before every forward of the modules that own the tensors `names`."""
    source = Weights(checkpoint, reference.model, torch.float32, 0).source
    wanted = set(names)
    handles = []
    for module_name, module in reference.model.named_modules():
        if "weight" not in module._parameters:
            continue
        name = source(f"{module_name}.weight")
        if name in wanted:
            handles.append(module.register_forward_pre_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, found: dict[str, torch.Tensor]) -> Hook:
    def look(module: Any, inputs: tuple[Any, ...]) -> None:
        peak = inputs[0].detach().abs().flatten(0, -2).amax(0)
        found[name] = torch.maximum(found[name], peak) if name in found else peak

    return look
