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


@dataclass
class _Sums:
    """Sums over the input vectors of some matrices that share them; moment and drift [in, in] or None."""

    square: torch.Tensor
    greatest: torch.Tensor
    moment: torch.Tensor | None
    drift: torch.Tensor | None
    tokens: int = 0

    def add(self, x: torch.Tensor, original: torch.Tensor | None) -> None:
        """x, original [tokens, in]: what the matrix is fed, and what the float model feeds it."""
        self.tokens += len(x)
        self.square += x.square().sum(0)
        self.greatest = torch.maximum(self.greatest, x.abs().amax(0))
        if self.moment is not None:
            self.moment.addmm_(x.T, x)
        if self.drift is not None and original is not None:
            self.drift.addmm_((original - x).T, x)

    def statistics(self) -> Statistics:
        def mean(part: torch.Tensor | None) -> Any:
            return None if part is None else (part / self.tokens).numpy()

        return Statistics(
            mean(self.square), self.tokens, self.greatest.numpy(), mean(self.moment), mean(self.drift)
        )


# Beyond so many columns a moment takes a quarter of a gigabyte: one is kept, and no drift.
LARGE = 4096


class Collector:
    """Statistics of the matrices of one layer (or of one head).

    modules: by tensor name.  moments: collect [in, in] moments too.  drift: compare with the float model,
    whose inputs `original` has seen for the same batch.  large: count matrices of more than LARGE columns.
    Matrices that are fed the very same tensor share one object.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], moments: bool, drift: bool, large: bool = True
    ) -> None:
        self._large = large
        self._modules, self._moments, self._drift = modules, moments, drift
        self._leader: dict[str, str] = {}  # tensor -> the first one with the same input
        self._sums: dict[str, _Sums] = {}
        self._original: dict[str, torch.Tensor] = {}

    @contextmanager
    def original(self) -> Iterator[None]:
        """Within, the float layer runs on the float model's states: keep what it feeds its matrices."""
        seen: dict[str, torch.Tensor] = {}
        with self._watched(seen):
            yield
        self._original = seen

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within, the layer runs on one batch: add what it feeds its matrices."""
        seen: dict[str, torch.Tensor] = {}
        with self._watched(seen):
            yield
        if not self._leader:
            self._find_leaders(seen)
        for name in dict.fromkeys(self._leader.values()):
            if not self._large and seen[name].shape[-1] > LARGE:
                continue
            self.add(name, seen[name], self._original.get(name))
        self._original = {}

    def add(self, name: str, value: torch.Tensor, original: torch.Tensor | None = None) -> None:
        """Count one batch of inputs [..., in] of the matrix `name`."""
        x = value.detach().reshape(-1, value.shape[-1]).float()
        if not torch.isfinite(x).all():
            raise InputError(
                f"what enters {name} is not finite on the calibration text; the model itself overflows there "
                "(check its weights), or take another --calibration text"
            )
        if name not in self._sums:
            count = x.shape[1]
            moment = torch.zeros(count, count) if self._moments else None
            drift = torch.zeros(count, count) if self._drift and count <= LARGE else None
            self._sums[name] = _Sums(torch.zeros(count), torch.zeros(count), moment, drift)
            self._leader.setdefault(name, name)
        self._sums[name].add(x, None if original is None else original.reshape(x.shape).float())

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
