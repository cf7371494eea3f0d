"""Train the scales of a whole quantized model on its float original's answers; codes stay as they are.

The loss is KL(float ‖ quantized) on the calibration text; for models without logits, the squared error of
their hidden states, relative to the float model's.  What is learnt is one relative factor for each stored
float of each matrix within layers, by Adam.  Every eighth batch is held out and judges: scales that do not
lower the loss there are not taken, so a tuned model is never worse on it than what tuning began with.
Sources: EfficientQAT's second phase (arXiv 2407.11062), with the loss of distillation instead of the text's.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gpt54_convert.calibrate.distance import demand_finite, divergence, squares
from gpt54_convert.calibrate.factored import Factored, Read, Switched
from gpt54_convert.calibrate.gradients import checkpoint_layers
from gpt54_convert.calibrate.solution import Solution
from gpt54_convert.calibrate.store import Store
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Advance, Report
from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.forward.batch import Batch, stack
from gpt54_convert.forward.torch_model import CPU, TorchReference, inputs, trim

_STEPS = 32  # about, in whole passes over the text, two at least
_RATE = 1e-3  # relative change of a scale by a step
_BETAS = (0.9, 0.95)
_HELD_PART = 8
_ANSWER_BYTES = 128 << 20  # of one model's answers, which bounds how many documents run together
# Of codes, held in memory instead of read for every product; a GPU has some to spare.
_KEEP_BYTES, _KEEP_BYTES_GPU = 256 << 20, 4 << 30
_COARSE = 0.02  # nats from which on bfloat16's own error, below 0.001, does not matter
_SEED = 54


def tune(
    solution: Solution,
    store: Store,
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    report: Report,
    threads: int = 0,
) -> None:
    """Train what a finished walk has put into `store`, and let `solution` answer from what came of it.

    The walk's store is left as it is; the tuned one appears beside it, whole, and is found again by the same
    job.  Memory: the codes (up to 256 MiB of them), a float32 factor, its gradient and two moments for each
    stored float, one layer's activations and float weights, and the answers of both models to some documents.
    Raises MeasureError where the float model's answers are not finite, OutputError where the disk is full.
    """
    goal = store.folder.with_name(f"{store.folder.name}-tuned")
    if not goal.exists():
        if threads:
            torch.set_num_threads(threads)
        work = solution, store, checkpoint, batches, report
        device = fastest()
        try:
            tuned = _trained(*work, device)
        except torch.OutOfMemoryError:
            report.note(f"tune: the memory of {device} is too small for this model; the processor tunes it")
            tuned = _trained(*work, CPU)
        _publish(store, tuned, goal)
    solution.store = Store(goal)


def fastest() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def _trained(
    solution: Solution,
    store: Store,
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    report: Report,
    device: torch.device,
) -> dict[str, Read]:
    """The tensors with better scales, or none."""
    grids = {name: grid for name, grid in solution.inner.items() if store.has(name, grid)}
    limit = _KEEP_BYTES if device == CPU else _KEEP_BYTES_GPU
    keep = sum(checkpoint.tensors[name].size for name in grids) <= limit
    fit, held = split(batches)
    with TorchReference(checkpoint, device=device) as reference:
        matrices = {
            name: Factored(partial(store.load, name, grid), keep, device) for name, grid in grids.items()
        }
        objective = Objective(Switched(reference, matrices), checkpoint, device)
        factors = [factor for matrix in objective.matrices.values() for factor in matrix.factors.values()]
        if not factors:
            return {}
        passes = max(2, round(_STEPS / len(fit)))
        order = [fit[i] for i in _order(len(fit), passes)]
        work = sum(batch.tokens.size for batch in [*order, *held, *held])
        with report.progress("tuning scales", work) as advance:
            before = objective.of(held, advance)
            if not math.isfinite(before):
                report.note("tune: the quantized model answers with NaN or infinity; nothing was tuned")
                return {}
            objective.lower_precision(before)
            whole = _descend(objective, factors, order, advance)
            tuned = {name: matrix.settle() for name, matrix in objective.matrices.items()}
            after = objective.of(held, advance) if whole else math.inf
    taken = after < before  # False for NaN too
    report.detail(
        f"tune: loss on held-out text {before:.5f} before, {after:.5f} after {len(order)} steps; "
        f"the tuned scales are {'taken' if taken else 'not taken'}"
    )
    return tuned if taken else {}


def split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit to, and every eighth to judge by; a single batch is both."""
    held = range(_HELD_PART // 2, len(batches), _HELD_PART) if len(batches) > _HELD_PART // 2 else [-1]
    judges = [batches[i] for i in held]
    return [each for each in batches if not any(each is judge for judge in judges)] or judges, judges


def _order(count: int, passes: int) -> list[int]:
    draws = np.random.default_rng(_SEED)
    return [int(i) for _ in range(passes) for i in draws.permutation(count)]


def _descend(
    objective: Objective, factors: list[torch.Tensor], order: Sequence[Batch], advance: Advance
) -> bool:
    """One step of Adam for each batch; False once a loss is not finite."""
    adam = torch.optim.Adam(factors, lr=_RATE, betas=_BETAS)
    warm = max(1, len(order) // 10)
    for step, batch in enumerate(order):
        rate = _RATE * min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / len(order)))
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        if not math.isfinite(objective.gradients(batch)):
            return False
        adam.step()
        advance(batch.tokens.size)
    return True


class Objective:
    """How far the quantized model is from the float one, and the gradients of its matrices' factors."""

    def __init__(self, switched: Switched, checkpoint: Checkpoint, device: torch.device = CPU) -> None:
        self._switched, self._model, self._device = switched, switched.model, device
        self.matrices = {name: switched.matrices[name] for name in sorted(switched.reached)}
        self._width = max(int(checkpoint.config.get(key) or 0) for key in ("vocab_size", "hidden_size"))
        checkpoint_layers(self._model)

    def lower_precision(self, loss: float) -> None:
        """Compute gradients in bfloat16 where the device multiplies in it and `loss` allows it."""
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        if (fast or self._device != CPU) and loss > _COARSE:
            self._switched.dtype = torch.bfloat16

    def of(self, batches: Sequence[Batch], advance: Advance) -> float:
        """The mean loss over batches, always in float32."""
        dtype, self._switched.dtype = self._switched.dtype, torch.float32
        total = 0.0
        for batch in batches:
            with torch.no_grad():
                total += sum(loss for loss, *_ in self._compared(batch))
            advance(batch.tokens.size)
        self._switched.dtype = dtype
        return total / len(batches)

    def gradients(self, batch: Batch) -> float:
        """The loss on one batch, whose gradients are added to those of the factors."""
        total = 0.0
        for loss, gradient, changed in self._compared(batch):
            total += loss
            if math.isfinite(total):
                changed.backward(gradient.to(changed.dtype))  # type: ignore[no-untyped-call]
        return total

    def _compared(self, batch: Batch) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
        """Loss, its gradient, and answers [documents, time, width] of some documents of a batch at a time.

        The quantized weights stay in place while a part is held: layers run again in the backward pass.
        """
        size = max(1, _ANSWER_BYTES // (4 * max(1024, self._width) * batch.tokens.shape[1]))
        documents = list(batch.documents)
        for start in range(0, len(documents), size):
            trim()
            part = stack(documents[start : start + size], 0)
            with torch.no_grad():
                original, is_logits = self._answers(part)
            demand_finite(original)
            with self._quantized():
                changed, _ = self._answers(part)
                judge = divergence if is_logits else squares
                total, scale = judge(original, changed.detach(), to_gradient=True)
                share = len(part.documents) / len(documents) / (scale or 1.0)
                yield total * share, original.mul_(share), changed

    def _answers(self, batch: Batch) -> tuple[torch.Tensor, bool]:
        """Logits, or hidden states where there are none; and whether they are logits."""
        low = self._switched.dtype == torch.bfloat16
        with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            output = self._model(**inputs(batch, self._device))
        logits = getattr(output, "logits", None)
        return (output.last_hidden_state, False) if logits is None else (logits, True)

    @contextmanager
    def _quantized(self) -> Iterator[None]:
        self._switched.quantized = True
        try:
            yield
        finally:
            self._switched.quantized = False


def _publish(store: Store, tuned: dict[str, Read], goal: Path) -> None:
    """A copy of the store with some tensors replaced, under its name only once it is whole."""
    folder = goal.with_name(f"{goal.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(store.folder, folder, copy_function=_link)
        new = Store(folder)
        for name, read in tuned.items():
            q = read()
            new.save(name, [q], q.shape[0])
        os.replace(folder, goal)
    except OSError as error:
        raise as_output_error(error, goal) from error


def _link(source: str, target: str) -> None:
    """The same file under another name, or a copy where the disk knows no links; neither is written to."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
