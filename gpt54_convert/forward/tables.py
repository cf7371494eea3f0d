"""Embedding and head, used by rows: whole, they may be larger than all else that is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from torch.func import functional_call

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor

_HEAD_BYTES = 32 << 20  # float32 rows of a head that are multiplied by at once


class Rows(nn.Module):
    """Stands where an embedding stood, and reads only the rows that a batch asks for."""

    def __init__(self, embedding: nn.Module, table: LazyTensor, dtype: torch.dtype) -> None:
        super().__init__()
        # No submodules: hooks would load all rows.
        self.__dict__.update(embedding=embedding, table=table, dtype=dtype)
        setattr(embedding, "padding_idx", None)  # noqa: B010 - torch would check it against the rows it gets

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["embedding"], name)

    def forward(self, ids: torch.Tensor) -> Any:
        wanted, places = torch.unique(ids, return_inverse=True)
        rows = np.concatenate([self.table.float_rows(row, row + 1) for row in wanted.cpu().tolist()])
        weight = torch.from_numpy(rows).to(ids.device, self.dtype)
        return functional_call(self.embedding, {"weight": weight}, (places,))


def embeddings_by_rows(
    model: Any, checkpoint: Checkpoint, source: Callable[[str], str], dtype: torch.dtype
) -> None:
    """Put `Rows` in the place of every embedding of the vocabulary.

    source: the checkpoint's tensor behind a parameter.
    """
    vocabulary = int(checkpoint.config.get("vocab_size") or 0)
    stand_ins: dict[int, Rows] = {}  # an encoder and a decoder may share one embedding
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary:
            table = checkpoint.tensors[source(f"{name}.weight")]
            stand_in = stand_ins.setdefault(id(module), Rows(module, table, dtype))
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, stand_in)


def head_by_rows(model: Any, checkpoint: Checkpoint, source: Callable[[str], str]) -> None:
    """Let the head, where it is a plain product, read its matrix by rows, instead of by accelerate's hook."""
    name, head = head_of(model)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return
    table = checkpoint.tensors[source(f"{name}.weight")]
    remove_hook_from_module(head)
    head.forward = lambda x: _Product.apply(x, table)  # type: ignore[method-assign,no-untyped-call]


def head_of(model: Any) -> tuple[str, Any]:
    """The module that makes logits and its name; ("", None) for a model without one."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [name for name, module in model.named_modules() if module is head and head is not None]
    return (names[0], head) if names else ("", None)


class _Product(torch.autograd.Function):
    """x [.., in] times a table [out, in], transposed: [.., out]; the table is read again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, table: LazyTensor) -> torch.Tensor:
        ctx.table, ctx.of = table, x.dtype
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        out = x.new_empty(*x.shape[:-1], table.row_count)
        for start, stop in table.chunks(_HEAD_BYTES):
            out[..., start:stop] = x @ _part(table, start, stop, x).T
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        gradient, table = gradients[0], ctx.table
        found = gradient.new_zeros(*gradient.shape[:-1], table.columns)
        for start, stop in table.chunks(_HEAD_BYTES):
            found += gradient[..., start:stop] @ _part(table, start, stop, gradient)
        return found.to(ctx.of), None


def _part(table: LazyTensor, start: int, stop: int, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(table.float_rows(start, stop)).to(like.device, like.dtype)
