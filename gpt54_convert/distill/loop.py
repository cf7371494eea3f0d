"""The training itself: steps, measurements, checkpoints to resume from, an early end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gpt54_convert.core.report import Report
from gpt54_convert.distill.models import Parameters
from gpt54_convert.distill.optimise import CLIP, optimizers, peaks_of, set_rates
from gpt54_convert.distill.options import DistillTrain
from gpt54_convert.distill.pair import Student, Teacher, measure, moved, targets_of
from gpt54_convert.distill.windows import Windows
from gpt54_convert.errors import InputError, UnsupportedError

STATE = "state.pt"
_FIT = 16  # windows that the projections are fitted to at first
Figures = dict[str, float]


@dataclass
class Progress:
    """How far a training is: all that decides how it goes on, besides the weights and the optimizer."""

    step: int = 0
    losses: list[Figures] = field(default_factory=list)
    measured: list[Figures] = field(default_factory=list)
    best: float = float("inf")
    worse: int = 0
    ended: bool = False


@dataclass
class Training:
    """One training.  train, held_out: windows to learn from and to measure on, `rows` of the latter.

    Every process holds the same weights and takes its share of a step's windows; gradients are averaged.
    """

    options: DistillTrain
    accelerator: Accelerator
    student: Student
    parameters: Parameters
    teacher: Teacher
    train: Windows
    held_out: Windows
    rows: list[int]
    folder: Path
    report: Report
    progress: Progress = field(default_factory=Progress)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    saved_step: int = 0

    def run(self) -> dict[str, torch.Tensor]:
        """Train to the end, or on from where it was interrupted; returns the best weights by name."""
        options = self.options
        if options.hidden:  # from the same windows in every process
            self.student.fit(self.teacher, self.train, self.train.of_step(0, options.batch)[:_FIT])
        opts = optimizers(options, self.parameters, self.student.projections)
        peaks = peaks_of(opts)
        self._restore(opts)
        wrapped = self.accelerator.prepare(self.student)
        saved, per_step = time.monotonic(), options.batch * options.context
        with self.report.progress("training", options.steps * per_step) as advance:
            advance(self.progress.step * per_step)
            try:
                while not self.progress.ended:
                    share = set_rates(opts, peaks, self.progress.step, options)
                    self._step(wrapped, opts, share)
                    self._look()
                    advance(per_step)
                    if time.monotonic() - saved > options.save_every or self.progress.ended:
                        self._save(opts)
                        saved = time.monotonic()
            except KeyboardInterrupt:
                where = f"behind step {self.saved_step}" if self.saved_step else "at the beginning"
                self.report.note(f"the training was interrupted; the same command goes on {where}")
                raise
        return self.best

    @property
    def _at_once(self) -> int:
        share = self.options.batch // int(self.accelerator.num_processes)
        return min(share, self.options.at_once or share)

    def _batch(self, numbers: list[int]) -> tuple[Any, list[int]]:
        return self.train.batch(numbers), [number % self.train.count for number in numbers]

    def _parts(self) -> Iterator[list[int]]:
        """This process's windows of a step, as many as are run at once."""
        numbers = self.train.of_step(self.progress.step, self.options.batch)
        own = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        for start in range(0, len(own), self._at_once):
            yield own[start : start + self._at_once]

    def _step(self, wrapped: Any, opts: list[Any], share: float) -> None:
        """One step of the optimizer, its gradients added up over parts and averaged over processes."""
        device = self.accelerator.device
        sums: dict[str, torch.Tensor] = {}
        parts = list(self._parts())
        count = sum(map(len, parts))
        for index, numbers in enumerate(parts):
            batch, rows = self._batch(numbers)
            answer = self.teacher.answer(batch, rows)
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(wrapped):
                found = wrapped(moved(batch, device), targets_of(batch, device), answer)
                weight = len(numbers) / count
                self.accelerator.backward(found["loss"] * weight)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * weight
        trained = [*self.parameters.values(), *self.student.projections.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        if not bool(torch.isfinite(norm)):
            raise UnsupportedError(
                f"the training diverged in step {self.progress.step} (gradients are not finite); take a "
                "lower --lr, or --precision fp32"
            )
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        self.progress.step += 1
        figures = {name: float(self.accelerator.reduce(value, "mean")) for name, value in sums.items()}
        self.progress.losses.append(
            {"step": self.progress.step, **figures, "gradient_norm": float(norm), "rate_share": share}
        )

    def _look(self) -> None:
        """Measure where it is time, keep the best weights, decide whether to end."""
        options, progress = self.options, self.progress
        every = options.eval_every or max(1, options.steps // 10)
        over = progress.step >= options.steps
        if progress.step % every and not over:
            return
        found = measure(
            self.student.model, self.teacher.model, self.held_out, self.rows, self.accelerator.device
        )
        progress.measured.append({"step": progress.step, **found})
        goal = found.get("kl", found.get("hidden", 0.0))
        if goal < progress.best or not self.best or not found:
            progress.best, progress.worse = goal, 0
            self.best = {name: each.detach().clone() for name, each in self.parameters.items()}
        else:
            progress.worse += 1
        told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        self.report.detail(
            f"step {progress.step} of {options.steps}: loss {progress.losses[-1]['loss']:.4f}; "
            f"held out: {told}"
        )
        progress.ended = over or bool(options.patience and progress.worse >= options.patience)

    def _save(self, opts: list[Any]) -> None:
        """A checkpoint, whole or not at all; every process has the same, so one writes it."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "progress": vars(self.progress),
            "weights": {name: each.detach().cpu() for name, each in self.parameters.items()},
            "projections": self.student.projections.state_dict(),
            "optimizers": [opt.state_dict() for opt in opts],
            "best": self.best,
        }
        temporary = self.folder / f"{STATE}.partial"
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch speaks of positions where the disk is full
                raise error.__context__ from error
            raise
        os.replace(temporary, self.folder / STATE)
        self.saved_step = self.progress.step

    def _restore(self, opts: list[Any]) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        except Exception as error:
            raise InputError(
                f"{path}: the checkpoint to resume from cannot be read; remove it to begin anew ({error})"
            ) from error
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.parameters[name].copy_(value)
        self.student.projections.load_state_dict(state["projections"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        self.progress, self.best = Progress(**state["progress"]), state["best"]
        self.saved_step = self.progress.step
        self.report.note(f"training goes on behind step {self.progress.step} of {self.options.steps}")
