"""Optimizers and the learning rate of a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from gpt54_convert.distill.models import Parameters
from gpt54_convert.distill.options import DistillTrain

CLIP = 1.0
_LEAST = 0.02  # of the peak, at the end


def optimizers(options: DistillTrain, parameters: Parameters, projections: nn.Module) -> list[Any]:
    """AdamW for all, or Muon (Jordan et al. 2024) for the matrices of the layers and AdamW for the rest.

    Tables (embedding, head, relative positions) and projections get half the rate, vectors no decay.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        outer = any(part in name for part in ("embed", "shared", "lm_head", "wte", "wpe", "_bias.weight"))
        kind = vectors if parameter.dim() < 2 else tables if outer else matrices
        kind.append(parameter)
    tables += list(projections.parameters())
    rate, decay = options.rate, options.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": tables, "lr": rate / 2, "weight_decay": decay / 5},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
    ]
    adam: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.98)}
    if options.optimizer == "adamw" or not matrices:
        groups.append({"params": matrices, "lr": rate, "weight_decay": decay})
        return [torch.optim.AdamW([group for group in groups if group["params"]], **adam)]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([group for group in groups if group["params"]], **adam)]


def set_rates(opts: list[Any], peaks: list[list[float]], step: int, options: DistillTrain) -> float:
    """Set every group's rate for a step: a linear rise, then a cosine; returns its share of the peak."""
    rise = round(options.warmup * options.steps)
    done = (step - rise) / max(1, options.steps - rise)
    cosine = _LEAST + (1 - _LEAST) * 0.5 * (1 + math.cos(math.pi * done))
    share = (step + 1) / (rise + 1) if step < rise else cosine
    for opt, rates in zip(opts, peaks, strict=True):
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = rate * share
    return share


def peaks_of(opts: list[Any]) -> list[list[float]]:
    """The peak rate of every group."""
    return [[group["lr"] for group in opt.param_groups] for opt in opts]
