"""Teacher and student side by side, and what the student's training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpt54_convert.distill import losses
from gpt54_convert.distill.cache import Top, TopCache
from gpt54_convert.distill.options import DistillTrain
from gpt54_convert.distill.windows import Windows
from gpt54_convert.forward.batch import Batch
from gpt54_convert.forward.torch_model import inputs

Tensor = torch.Tensor
Stacks = list[list[Tensor]]


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a batch.

    logits [batch, time, vocab], or its largest as (log-probabilities, tokens) [batch, time, k].
    states: by stack, the hidden states that the student's layers are held against.
    """

    logits: Tensor | None
    top: tuple[Tensor, Tensor] | None
    states: Stacks


class Student(nn.Module):
    """The model in training with its projections; `forward` gives the losses, so that it can be wrapped."""

    def __init__(self, model: nn.Module, options: DistillTrain, vocab: int) -> None:
        super().__init__()
        self.model, self.options, self.vocab = model, options, vocab
        self.projections = nn.ModuleList()

    def fit(self, teacher: Teacher, windows: Windows, numbers: list[int]) -> None:
        """Make the projections, the best ones for some windows; these are run one by one."""
        fits: list[losses.Fit] = []
        for number in numbers:
            batch = windows.batch([number])
            with torch.no_grad():
                output = self.model(**moved(batch, teacher.device), output_hidden_states=True)
            for index, (ours, theirs) in enumerate(_pairs(layers(output), teacher.answer(batch, [0]).states)):
                if index == len(fits):
                    fits.append(losses.Fit())
                fits[index].add(ours, theirs)
        for fit in fits:
            matrix = fit.matrix()
            made = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device=teacher.device)
            made.weight.data.copy_(matrix)
            self.projections.append(made)

    def forward(self, batch: dict[str, Tensor], targets: Tensor, answer: Answer) -> dict[str, Tensor]:
        """The losses of a batch by name, and their weighted sum as `loss`."""
        options = self.options
        wants = {"output_hidden_states": True} if options.hidden else {}
        output = self.model(**batch, **wants)
        found: dict[str, Tensor] = {}
        logits = getattr(output, "logits", None)
        if logits is not None and options.kl:
            if answer.top is not None:
                found["kl"] = losses.top_divergence(logits, *answer.top, options.temperature, self.vocab)
            elif answer.logits is not None:
                found["kl"] = losses.divergence(logits, answer.logits, options.temperature)
        if logits is not None and options.ce:
            found["ce"] = losses.cross_entropy(logits, targets)
        if options.hidden:
            pairs = _pairs(layers(output), answer.states)
            ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
            found["hidden"] = losses.distance(ours, theirs, self.projections)
        found["loss"] = torch.stack([getattr(options, name) * each for name, each in found.items()]).sum()
        return found


class Teacher:
    """A model that answers, and remembers its answers on disk if there is a cache."""

    def __init__(
        self, model: Any, options: DistillTrain, vocab: int, cache: TopCache | None, device: torch.device
    ) -> None:
        self.model, self.options, self.vocab, self.cache, self.device = model, options, vocab, cache, device

    @torch.no_grad()
    def answer(self, batch: Batch, rows: list[int]) -> Answer:
        """What it says of the windows `rows` (as the cache counts them)."""
        if self.cache is not None:
            if not self.cache.has(rows):
                logits = self.model(**moved(batch, self.device)).logits
                values, tokens = losses.top(logits, self.options.temperature, self.options.top_k, self.vocab)
                self.cache.put(rows, Top(values.cpu().numpy(), tokens.int().cpu().numpy()))
            top = self.cache.get(rows)
            both = (torch.from_numpy(top.values), torch.from_numpy(top.tokens).long())
            return Answer(None, (both[0].to(self.device), both[1].to(self.device)), [])
        if not self.options.kl and not self.options.hidden:
            return Answer(None, None, [])
        wants = {"output_hidden_states": True} if self.options.hidden else {}
        output = self.model(**moved(batch, self.device), **wants)
        states = layers(output) if self.options.hidden else []
        return Answer(getattr(output, "logits", None), None, states)


def moved(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch of equal windows as a model takes it, without masks: nothing is padded."""
    return {name: each.to(device) for name, each in inputs(batch).items() if not name.endswith("mask")}


def targets_of(batch: Batch, device: torch.device) -> Tensor:
    """The tokens that follow, [batch, time]; empty for an encoder."""
    rows = [torch.from_numpy(document.targets) for document in batch.documents]
    return torch.stack(rows).to(device)


def layers(output: Any) -> Stacks:
    """By stack, the hidden states behind each layer, the embedding's left out."""
    found = [getattr(output, name, None) for name in ("hidden_states",)]
    if found[0] is None:
        found = [getattr(output, f"{side}_hidden_states", None) for side in ("encoder", "decoder")]
    return [list(states[1:]) for states in found if states is not None]


def _pairs(ours: Stacks, theirs: Stacks) -> list[tuple[Tensor, Tensor]]:
    """Each layer of the student with the teacher's at the same part of the way."""
    found = []
    for mine, others in zip(ours, theirs, strict=True):
        for index, states in enumerate(mine, 1):
            found.append((states, others[round(index * len(others) / len(mine)) - 1]))
    return found


@torch.no_grad()
def measure(
    student: Any, teacher: Any, windows: Windows, rows: list[int], device: torch.device
) -> dict[str, float]:
    """Held-out figures over windows: `kl` and `ce` in nats per token; of an encoder, `hidden` instead."""
    total: dict[str, float] = {}
    for start in range(0, len(rows), 8):
        some = rows[start : start + 8]
        batch = windows.batch(some)
        output, other = (model(**moved(batch, device)) for model in (student, teacher))
        if getattr(output, "logits", None) is None:
            states = (losses.unit(each.last_hidden_state) for each in (output, other))
            both = list(states)
            if both[0].shape != both[1].shape:
                return {}
            found = {"hidden": (both[0] - both[1]).square().mean()}
        else:
            found = {
                "kl": losses.divergence(output.logits, other.logits, 1.0),
                "ce": losses.cross_entropy(output.logits, targets_of(batch, device)),
            }
        for name, value in found.items():
            total[name] = total.get(name, 0.0) + float(value) * len(some) / len(rows)
    return total
