"""Hooks that see what enters the modules of a running model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.forward.torch_model import TorchReference, Weights

Look = Callable[[str, torch.Tensor], None]


@contextmanager
def watched(
    checkpoint: Checkpoint, reference: TorchReference, names: Iterable[str], look: Look
) -> Iterator[None]:
    """While it lasts, `look(name, values)` sees what enters the owner of each tensor of `names`.

    values: [.., columns]; tokens that enter a table of embeddings are not shown.
    """
    source = Weights(checkpoint, reference.model, torch.float32, 0).source
    wanted = set(names)
    handles = []
    for module_name, module in reference.model.named_modules():
        if "weight" not in module._parameters or isinstance(module, torch.nn.Embedding):
            continue
        name = source(f"{module_name}.weight")
        if name in wanted:
            handles.append(module.register_forward_pre_hook(_hook(name, look)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, look: Look) -> Any:
    def before(module: Any, inputs: tuple[Any, ...]) -> None:
        look(name, inputs[0].detach())

    return before
