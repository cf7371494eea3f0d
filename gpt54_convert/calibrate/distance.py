"""How far one model's answers are from another's: a sum, what to divide it by, and gradients if wanted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from gpt54_convert.errors import MeasureError

_PART = 1 << 21  # numbers of either model that are looked at together: 8 MB, and some times that at work


def divergence(
    original: torch.Tensor, changed: torch.Tensor, to_gradient: bool = False
) -> tuple[float, float]:
    """The sum over tokens of KL(original ‖ changed) in nats, and the number of tokens.

    original, changed: logits [..., vocab].
    to_gradient: `original` becomes the gradient of the sum by `changed`.
    """
    total = 0.0
    for ours, theirs in _parts(original, changed):
        wanted, found = torch.log_softmax(ours.float(), -1), torch.log_softmax(theirs.float(), -1)
        odds = wanted.exp()
        total += float((odds * (wanted - found)).sum(-1).double().sum())
        if to_gradient:
            ours.copy_(found.exp_() - odds)
    return total, float(original.shape[:-1].numel())


def squares(original: torch.Tensor, changed: torch.Tensor, to_gradient: bool = False) -> tuple[float, float]:
    """The squared error of hidden states [..., width], and the original's square; else as `divergence`."""
    total = scale = 0.0
    for ours, theirs in _parts(original, changed):
        error = theirs.float() - ours.float()
        total += float((error**2).double().sum())
        scale += float((ours.float() ** 2).double().sum())
        if to_gradient:
            ours.copy_(2 * error)
    return total, scale


def demand_finite(answers: torch.Tensor) -> None:
    """MeasureError where the float model answers with what is no number: nothing can be compared with it."""
    if not torch.isfinite(answers).all():
        raise MeasureError(
            "the float model's own answers to the calibration text are not finite: it is broken"
        )


def _parts(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of some tokens of each, [tokens, last axis]."""
    *outer, _, width = tensors[0].shape
    size = max(1, _PART // max(1, width))
    for place in product(*map(range, outer)):
        rows = [tensor[place] for tensor in tensors]
        for start in range(0, len(rows[0]), size):
            yield tuple(each[start : start + size] for each in rows)
