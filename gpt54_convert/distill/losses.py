"""How far a student is from its teacher: in its answers, in the text, and in its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Tensor = torch.Tensor


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) in nats, the mean over tokens, of logits [batch, time, vocab] over a temperature.

    Times temperature², so that gradients keep their size (Hinton et al. 2015, arXiv:1503.02531).  Rows of
    padding that only one of the two has do not count.
    """
    vocab = min(student.shape[-1], teacher.shape[-1])
    ours = functional.log_softmax(student[..., :vocab].float() / temperature, -1)
    theirs = functional.log_softmax(teacher[..., :vocab].float() / temperature, -1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1).mean()


def top_divergence(student: Tensor, values: Tensor, tokens: Tensor, temperature: float, vocab: int) -> Tensor:
    """The same from the teacher's k largest log-probabilities [batch, time, k]; all others are one outcome.

    A lower bound of the whole divergence, and near it where k holds most of the mass.
    """
    ours = functional.log_softmax(student[..., :vocab].float() / temperature, -1)
    ours_top = ours.gather(-1, tokens)
    share = values.exp()
    rest = (1 - share.sum(-1)).clamp_min(1e-7)
    ours_rest = torch.log((1 - ours_top.exp().sum(-1)).clamp_min(1e-7))
    total = (share * (values - ours_top)).sum(-1) + rest * (rest.log() - ours_rest)
    return temperature**2 * total.mean()


def top(teacher: Tensor, temperature: float, k: int, vocab: int) -> tuple[Tensor, Tensor]:
    """The k largest log-probabilities and their tokens, [batch, time, k]."""
    logs = functional.log_softmax(teacher[..., :vocab].float() / temperature, -1)
    found = logs.topk(min(k, vocab), -1)
    return found.values, found.indices


def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """−log p of the tokens that really follow, the mean over tokens, in nats."""
    return functional.cross_entropy(student.float().flatten(0, 1), targets.flatten())


def distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], projections: torch.nn.ModuleList
) -> Tensor:
    """The mean squared distance of hidden states [batch, time, width], each scaled to a mean square of 1.

    The student's pass through one learned matrix a layer, since they are narrower.
    """
    parts = [
        (projection(unit(ours)) - unit(theirs)).square().mean()
        for ours, theirs, projection in zip(student, teacher, projections, strict=True)
    ]
    return torch.stack(parts).mean()


def unit(states: Tensor) -> Tensor:
    """States with a root mean square of 1 in every position."""
    states = states.float()
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)


class Fit:
    """The matrix [teacher's width, student's width] that maps states best, by least squares."""

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Take states [batch, time, width] of both into account."""
        ours, theirs = unit(student).flatten(0, 1).double(), unit(teacher).flatten(0, 1).double()
        gram, cross = ours.T @ ours, ours.T @ theirs
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross

    def matrix(self) -> Tensor:
        """The best one so far; a small ridge keeps it tame where states are few."""
        assert self._gram is not None
        assert self._cross is not None
        gram = self._gram
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        found: Tensor = torch.linalg.solve(gram + ridge, self._cross)
        return found.T.float()
