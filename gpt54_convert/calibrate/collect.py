"""Moments of what enters each matrix of a layer, seen by hooks while the layer runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpt54_convert.errors import InputError
from gpt54_convert.quantize.statistics import Statistics

Weights = Mapping[str, torch.Tensor]  # of a batch's tokens, by tensor name


def refuse(name: str, inputs: torch.Tensor) -> None:
    """Raise InputError where not all that enters the matrix `name` is finite."""
    if not all(end.isfinite() for end in inputs.aminmax()):  # one pass; what is not a number shows in both
        raise InputError(
            f"what enters {name} is not finite on the calibration text; the model itself overflows there "
            "(check its weights), or take another --calibration text"
        )


@dataclass
class _Sums:
    """Weighted sums over the input vectors of some matrices that share them; moment [in, in] or None."""

    square: torch.Tensor
    greatest: torch.Tensor
    moment: torch.Tensor | None
    tokens: int = 0
    weight: float = 0.0

    def add(self, x: torch.Tensor, weight: torch.Tensor | None) -> None:
        """x [tokens, in]: what the matrix is fed.  weight [tokens] or None: what each counts, else 1."""
        self.tokens += len(x)
        self.weight += len(x) if weight is None else float(weight.double().sum())
        self.greatest = torch.maximum(self.greatest, x.abs().amax(0))
        weighted = x if weight is None else x * weight[:, None]
        self.square += (x * weighted).sum(0)
        if self.moment is not None:
            self.moment.addmm_(weighted.T, x)

    def statistics(self) -> Statistics:
        """The means; nothing can be added any more, for moments are large and divided in place."""

        def mean(part: torch.Tensor | None) -> Any:
            return None if part is None else part.div_(self.weight or 1.0).numpy()

        return Statistics(mean(self.square), self.tokens, self.greatest.numpy(), mean(self.moment))


# Beyond so many columns a moment takes a quarter of a gigabyte: one is kept.
LARGE = 4096


class Collector:
    """Statistics of the matrices of one layer (or of one head).

    modules: by tensor name.  moments: collect [in, in] moments too.  large: count matrices of more than
    LARGE columns.  Matrices that are fed the very same tensor share one object, in which a token counts by
    the sum of its weights for each of them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], moments: bool, large: bool = True) -> None:
        self._modules, self._moments, self._large = modules, moments, large
        self._leader: dict[str, str] = {}  # tensor -> the first one with the same input
        self._sums: dict[str, _Sums] = {}

    @contextmanager
    def counting(self, weights: Weights) -> Iterator[None]:
        """Within, the layer runs on one batch: add what it feeds its matrices, tokens by their `weights`."""
        seen: dict[str, torch.Tensor] = {}
        with self._watched(seen):
            yield
        if not self._leader:
            self._find_leaders(seen)
        for name in dict.fromkeys(self._leader.values()):
            if not self._large and seen[name].shape[-1] > LARGE:
                continue
            found = [
                weights[each] for each, leader in self._leader.items() if leader == name and each in weights
            ]
            self.add(name, seen[name], sum(found) if found else None)  # type: ignore[arg-type]

    def add(self, name: str, value: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Count one batch of inputs [..., in] of the matrix `name`; weight [...] of its tokens."""
        x = value.detach().reshape(-1, value.shape[-1]).float()
        refuse(name, x)
        if name not in self._sums:
            count = x.shape[1]
            moment = torch.zeros(count, count) if self._moments else None
            self._sums[name] = _Sums(torch.zeros(count), torch.zeros(count), moment)
            self._leader.setdefault(name, name)
        flat = None if weight is None or weight.numel() != len(x) else weight.reshape(-1)
        self._sums[name].add(x, flat)

    def statistics(self) -> dict[str, Statistics]:
        """By tensor name, for every matrix that ran."""
        found = {leader: sums.statistics() for leader, sums in self._sums.items()}
        return {name: found[leader] for name, leader in self._leader.items() if leader in found}

    def _find_leaders(self, seen: Mapping[str, torch.Tensor]) -> None:
        for name, value in seen.items():
            same = (other for other in dict.fromkeys(self._leader.values()) if seen[other] is value)
            self._leader[name] = next(same, name)

    @contextmanager
    def _watched(self, seen: dict[str, torch.Tensor]) -> Iterator[None]:
        def hook(name: str) -> Any:
            def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
                seen[name] = args[0]

            return keep

        hooks = [module.register_forward_pre_hook(hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()
