"""The pass `distill-train`: teacher, student and text in, the trained student out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from gpt54_convert import __version__, archs, loaders
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.options import to_dict
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.distill import curve
from gpt54_convert.distill.belong import check
from gpt54_convert.distill.cache import TopCache
from gpt54_convert.distill.loop import Progress, Training
from gpt54_convert.distill.models import drawn_anew, trainable, with_weights
from gpt54_convert.distill.options import DistillTrain
from gpt54_convert.distill.pair import Student, Teacher
from gpt54_convert.distill.student import NOTES, name_of
from gpt54_convert.distill.windows import Windows, chunks, spill
from gpt54_convert.errors import UsageError
from gpt54_convert.forward.documents import specials, tokenizer

HELD_OUT_WINDOWS = 32
_HELD_OUT_SHARE = 20  # one part in so many of a text of the user's own


def train(options: DistillTrain, checkpoint: Checkpoint, context: Context) -> Checkpoint:
    """See `DistillTrain.apply`.  In a process that is not the first of several it ends the program."""
    teacher = _teacher(options, context)
    check(options, teacher, checkpoint)
    folder = context.workspace / f"train-{_fingerprint(options, teacher, checkpoint)}"
    if context.threads:
        torch.set_num_threads(context.threads)
    accelerator = _accelerator(options)
    if options.batch % accelerator.num_processes:
        raise UsageError(
            f"--batch {options.batch} does not divide among {accelerator.num_processes} processes; give a "
            "multiple"
        )
    report = context.report if accelerator.is_main_process else Report()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _first(accelerator):
            windows, held_out = _windows(options, teacher, folder)
        return _run(options, accelerator, teacher, checkpoint, (windows, held_out), folder, report)
    except OSError as error:
        raise as_output_error(error, folder) from error


def _run(
    options: DistillTrain,
    accelerator: Accelerator,
    teacher: Checkpoint,
    checkpoint: Checkpoint,
    windows: tuple[Windows, Windows],
    folder: Path,
    report: Report,
) -> Checkpoint:
    """The training itself, and its result; other processes than the first end here."""
    if any(tensor.grid for tensor in checkpoint.tensors.values()):
        report.note("the student is quantized: what its codes mean is trained on, as floats")
    job = _job(options, accelerator, teacher, checkpoint, windows, folder, report)
    best = job.run()
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        raise SystemExit(0)  # the first process writes the result
    result = with_weights(checkpoint, best, folder / "trained.safetensors")
    accelerator.wait_for_everyone()
    return _noted(options, teacher, result, job.progress, accelerator.num_processes, report)


def _teacher(options: DistillTrain, context: Context) -> Checkpoint:
    if options.teacher is not None:
        return loaders.load(options.teacher)
    if context.source is None:
        raise UsageError("distill-train needs a teacher; give --teacher")
    return context.source


def _fingerprint(options: DistillTrain, teacher: Checkpoint, student: Checkpoint) -> str:
    """Names this training: everything that decides the weights, but not how often it is saved."""
    files = [*teacher.source.files, *student.source.files, *map(Path, options.text)]
    files += [options.eval_text] if options.eval_text else []
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    told = {**to_dict(options), "save_every": 0}
    text = json.dumps([__version__, torch.__version__, told, stats, dict(student.config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _accelerator(options: DistillTrain) -> Accelerator:
    """As `accelerate launch` set things up, if it did; another training in this process starts anew."""
    AcceleratorState._reset_state()
    precision = "bf16" if options.precision == "bf16" else "no"
    # What only hidden states teach leaves the head without a gradient.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=not (options.kl or options.ce))
    return Accelerator(
        cpu=options.device == "cpu" or None, mixed_precision=precision, kwargs_handlers=[parallel]
    )


@contextmanager
def _first(accelerator: Accelerator) -> Iterator[None]:
    """The first process of each machine goes ahead: it writes files that the others read."""
    with accelerator.local_main_process_first():
        yield


def _windows(options: DistillTrain, teacher: Checkpoint, folder: Path) -> tuple[Windows, Windows]:
    """What to learn from, and what to measure on."""
    tokenize = tokenizer(teacher)
    own = [Path(name) for name in options.text]
    ids = spill(chunks(own, "train"), tokenize, folder / "text.u32")
    if options.eval_text is not None:
        held_out = spill(chunks([options.eval_text], ""), tokenize, folder / "held-out.u32")
    elif own:
        cut = len(ids) - len(ids) // _HELD_OUT_SHARE
        ids, held_out = ids[:cut], ids[cut:]
    else:
        held_out = spill(chunks([], "calibration"), tokenize, folder / "held-out.u32")
    before, after = specials(tokenize)
    assert teacher.architecture is not None
    common: dict[str, Any] = {
        "kind": archs.by_name(teacher.architecture).kind,
        "context": options.context,
        "before": tuple(before),
        "after": tuple(after),
        "start": int(teacher.config.get("decoder_start_token_id") or 0),
    }
    train = Windows(ids, seed=options.seed, shifts=not options.top_k, **common)
    return train, Windows(held_out, shifts=False, **common)


def _job(
    options: DistillTrain,
    accelerator: Accelerator,
    teacher: Checkpoint,
    student: Checkpoint,
    windows: tuple[Windows, Windows],
    folder: Path,
    report: Report,
) -> Training:
    device, (train_on, held_out) = accelerator.device, windows
    vocab = min(int(each.config["vocab_size"]) for each in (teacher, student))
    half = options.precision == "bf16"
    large, _ = trainable(teacher, torch.bfloat16 if half else torch.float32)
    large = large.to(device).requires_grad_(False)
    small, parameters = trainable(student)
    if options.from_scratch:
        drawn_anew(student, small, parameters, options.seed)
    small.to(device)
    cache = None
    if options.top_k:
        cache = TopCache(folder, train_on.count, options.context, min(options.top_k, vocab))
    rows = [int(i * held_out.count / HELD_OUT_WINDOWS) for i in range(HELD_OUT_WINDOWS)]
    return Training(
        options,
        accelerator,
        Student(small, options, vocab),
        parameters,
        Teacher(large, options, vocab, cache, device),
        train_on,
        held_out,
        sorted(set(rows)),
        folder,
        report,
    )


def _noted(
    options: DistillTrain,
    teacher: Checkpoint,
    result: Checkpoint,
    progress: Progress,
    processes: int,
    report: Report,
) -> Checkpoint:
    """The trained model with its history: in config.json, and as a curve beside its weights."""
    steps = progress.step
    best = min(progress.measured, key=lambda each: each.get("kl", each.get("hidden", 0.0)))
    note: dict[str, Any] = {
        "teacher": name_of(teacher),
        "steps": steps,
        "target_tokens": steps * options.batch * options.context,
        **{f"held_out_{name}": round(value, 5) for name, value in best.items() if name != "step"},
    }
    name = "kl" if "kl" in best else "hidden"
    losses = [(each["step"], each["loss"]) for each in progress.losses]
    held_out = [(each["step"], each[name]) for each in progress.measured if name in each]
    picture = curve.svg(
        f"distilled from {note['teacher']}", {"loss": losses, f"held-out {name}": held_out}, "step", "nats"
    )
    told = ", ".join(
        f"held-out {key.removeprefix('held_out_')} {note[key]}" for key in note if "held_out" in key
    )
    ended = "" if steps >= options.steps else f" (ended early: no better for {options.patience} measurements)"
    report.note("\n".join([f"{steps} steps, {told}{ended}; the loss:", *curve.text(losses)]))
    record = {
        "options": to_dict(options),
        "processes": processes,
        "losses": progress.losses,
        "measured": progress.measured,
    }
    files = {
        "training.svg": picture,
        "training.json": (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(),
    }
    own = {**result.config.get(NOTES, {}), "distilled": note}
    return replace(result, config={**result.config, NOTES: own}, extras={**result.extras, **files})
